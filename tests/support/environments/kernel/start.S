/* Where a loader enters, by multiboot or (built with -DPVH) by PVH: 32 bits, flat, no paging, no interrupts. */
#ifdef PVH
        .section .note.pvh, "a", @note
        .align 4
        .long 4, 4, 18                  /* XEN_ELFNOTE_PHYS32_ENTRY */
        .asciz "Xen"
        .long start
#else
        .section .boot, "a"
        .align 4
        .long 0x1badb002                /* multiboot 1, as the specification has it */
        .long 0x00000003                /* page-aligned modules, memory information */
        .long -(0x1badb002 + 0x00000003)
#endif

        .section .text
        .global start
start:
        mov $stack, %esp
        push %ebx                       /* what the loader tells */
        call run
1:      hlt
        jmp 1b

        .section .bss
        .align 16
        .skip 16384
stack:
        .section .note.GNU-stack, "", @progbits
