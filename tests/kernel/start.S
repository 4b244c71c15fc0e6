/* Where a multiboot loader (QEMU's -kernel) enters: 32 bits, flat, no paging, no interrupts. */
        .section .boot, "a"
        .align 4
        .long 0x1badb002                /* multiboot 1, as the specification has it */
        .long 0x00000003                /* page-aligned modules, memory information */
        .long -(0x1badb002 + 0x00000003)

        .section .text
        .global start
start:
        mov $stack, %esp
        push %ebx                       /* the multiboot information */
        call run
1:      hlt
        jmp 1b

        .section .bss
        .align 16
        .skip 16384
stack:
        .section .note.GNU-stack, "", @progbits
