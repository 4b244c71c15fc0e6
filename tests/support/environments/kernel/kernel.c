/*
 * The tests' own unikernel: small enough to read, and it does what one has to under a tender.
 *
 * It writes to its console (the first serial port), reads its arguments, shows what it was handed on
 * its disk, answers ARP, ICMP echo and UDP echo (port 7) on its network, and ends as it is asked to.
 * Devices are legacy virtio on PCI (Virtual I/O Device 1.1, section 4.1.4.8); all is polled.
 *
 * Arguments: ip=A.B.C.D: its address; ask=PORT: ask that port of its mailbox's network;
 * exit=N: end at once with that status. UDP to port 7 saying "stop" ends it well, "fail" badly.
 */
#include <stddef.h>
#include <stdint.h>

typedef uint8_t u8;
typedef uint16_t u16;
typedef uint32_t u32;

static inline void out8(u16 port, u8 value) { __asm__ volatile("outb %0, %1" : : "a"(value), "Nd"(port)); }
static inline void out16(u16 port, u16 value) { __asm__ volatile("outw %0, %1" : : "a"(value), "Nd"(port)); }
static inline void out32(u16 port, u32 value) { __asm__ volatile("outl %0, %1" : : "a"(value), "Nd"(port)); }
static inline u8 in8(u16 port) { u8 value; __asm__ volatile("inb %1, %0" : "=a"(value) : "Nd"(port)); return value; }
static inline u16 in16(u16 port) { u16 value; __asm__ volatile("inw %1, %0" : "=a"(value) : "Nd"(port)); return value; }
static inline u32 in32(u16 port) { u32 value; __asm__ volatile("inl %1, %0" : "=a"(value) : "Nd"(port)); return value; }
static inline void barrier(void) { __asm__ volatile("" : : : "memory"); }

/* -- text -------------------------------------------------------------------------------- */
void *memcpy(void *to, const void *from, size_t size)
{
    u8 *a = to; const u8 *b = from;
    while (size--) *a++ = *b++;
    return to;
}

void *memset(void *to, int value, size_t size)
{
    u8 *a = to;
    while (size--) *a++ = (u8)value;
    return to;
}

int memcmp(const void *one, const void *other, size_t size)
{
    const u8 *a = one, *b = other;
    for (; size--; a++, b++) if (*a != *b) return *a - *b;
    return 0;
}

static void put(char c)
{
    while (!(in8(0x3fd) & 0x20)) ;
    out8(0x3f8, (u8)c);
}

static void say(const char *text) { while (*text) put(*text++); }

static void say_bytes(const u8 *bytes, u32 size)
{
    for (u32 i = 0; i < size && bytes[i] >= ' ' && bytes[i] < 127; i++) put((char)bytes[i]);
}

static const char *argument(const char *line, const char *name)
{
    u32 size = 0;
    while (name[size]) size++;
    for (const char *at = line; *at; at++)
        if ((at == line || at[-1] == ' ') && !memcmp(at, name, size)) return at + size;
    return NULL;
}

static u32 number(const char **text)
{
    u32 value = 0;
    while (**text >= '0' && **text <= '9') value = value * 10 + (u32)(*(*text)++ - '0');
    return value;
}

/* -- ending -------------------------------------------------------------------------------- */
static void leave(u32 status)
{
    if (status) out8(0xf4, (u8)status); /* isa-debug-exit: the tender's status is 2 * status + 1 */
    out8(0x64, 0xfe);                   /* else a reset, which the tender takes for a good end */
    static const struct { u16 size; u32 at; } __attribute__((packed)) none = {0, 0};
    __asm__ volatile("lidt %0; int3" : : "m"(none)); /* where there is no keyboard: a triple fault */
    for (;;) __asm__ volatile("hlt");
}

/* -- PCI and virtio ------------------------------------------------------------------------- */
static u32 pci(u32 device, u32 offset)
{
    out32(0xcf8, 0x80000000u | device << 11 | offset);
    return in32(0xcfc);
}

struct descriptor { u32 low, high, size; u16 flags, next; };
struct element { u32 id, size; };
struct queue {
    u16 base, number, size, seen;
    struct descriptor *table;
    volatile u16 *available; /* flags, index, ring */
    volatile u16 *used;      /* flags, index, then elements */
};

enum { NEXT = 1, WRITE = 2, ALIGN = 4096, MOST = 256 };
static u8 memory[12 * 4 * ALIGN] __attribute__((aligned(ALIGN)));
static u32 taken;

static void queue_up(struct queue *queue, u16 base, u16 number)
{
    queue->base = base; queue->number = number;
    out16(base + 14, number);
    queue->size = in16(base + 12);
    u8 *ring = memory + taken;
    u32 first = queue->size * 16u + 6 + queue->size * 2u;
    first = (first + ALIGN - 1) & ~(u32)(ALIGN - 1);
    taken += first + ((6 + queue->size * 8u + ALIGN - 1) & ~(u32)(ALIGN - 1));
    queue->table = (struct descriptor *)ring;
    queue->available = (volatile u16 *)(ring + queue->size * 16u);
    queue->used = (volatile u16 *)(ring + first);
    out32(base + 8, (u32)ring / ALIGN);
}

static void describe(struct queue *queue, u16 at, const void *data, u32 size, u16 flags, u16 next)
{
    queue->table[at] = (struct descriptor){(u32)data, 0, size, flags, next};
}

static void offer(struct queue *queue, u16 at)
{
    queue->available[2 + queue->available[1] % queue->size] = at;
    barrier();
    queue->available[1]++;
    barrier();
    out16(queue->base + 16, queue->number);
}

static volatile struct element *done(struct queue *queue)
{
    barrier();
    if (queue->used[1] == queue->seen) return NULL;
    return (volatile struct element *)(queue->used + 2) + queue->seen++ % queue->size;
}

static u16 device_up(u32 device)
{
    u16 base = (u16)(pci(device, 0x10) & ~3u);
    out32(0xcf8, 0x80000000u | device << 11 | 4);
    out16(0xcfc, 5); /* ports, bus master */
    out8(base + 18, 0); out8(base + 18, 1); out8(base + 18, 3);
    return base;
}

/* -- what was handed over --------------------------------------------------------------------- */
static void show_disk(u16 base)
{
    static struct queue queue;
    static struct { u32 type, reserved, sector, high; } request;
    static u8 block[1024], status;
    queue_up(&queue, base, 0);
    out32(base + 4, 0);
    out8(base + 18, 7);
    describe(&queue, 0, &request, 16, NEXT, 1);
    describe(&queue, 1, block, sizeof block, NEXT | WRITE, 2);
    describe(&queue, 2, &status, 1, WRITE, 0);
    offer(&queue, 0);
    while (!done(&queue)) ;
    say("disk: ");
    say_bytes(block, 100); /* a tar's first member: its name, and what is in it */
    say(" ");
    say_bytes(block + 512, 512);
    say("\n");
    /* What it is handed it can't change. */
    request.type = 1;
    describe(&queue, 1, block, 512, NEXT, 2);
    offer(&queue, 0);
    while (!done(&queue)) ;
    say(status ? "disk: can't be written\n" : "disk: written!\n");
}

/* -- the network --------------------------------------------------------------------------------- */
enum { HEADER = 10, FRAMES = 16, LARGEST = 2048 };
struct nic {
    u16 base;
    u8 mac[6], ip[4];
    struct queue receive, send;
    u8 frames[FRAMES][LARGEST], out[LARGEST];
};
static struct nic nics[2];

static void nic_up(struct nic *nic, u32 device)
{
    nic->base = device_up(device);
    out32(nic->base + 4, in32(nic->base) & 1u << 5); /* it has a MAC; nothing else is wanted */
    for (u32 i = 0; i < 6; i++) nic->mac[i] = in8((u16)(nic->base + 20 + i));
    queue_up(&nic->receive, nic->base, 0);
    queue_up(&nic->send, nic->base, 1);
    out8(nic->base + 18, 7);
    for (u16 i = 0; i < FRAMES; i++) {
        describe(&nic->receive, i, nic->frames[i], LARGEST, WRITE, 0);
        offer(&nic->receive, i);
    }
}

static void transmit(struct nic *nic, const u8 *frame, u32 size)
{
    memset(nic->out, 0, HEADER);
    memcpy(nic->out + HEADER, frame, size);
    describe(&nic->send, 0, nic->out, HEADER + size, 0, 0);
    offer(&nic->send, 0);
    while (!done(&nic->send)) ;
}

#include "answers.h"

static void ask(struct nic *nic, u16 port)
{
    static const u8 router[6] = {0x52, 0x55, 10, 0, 2, 2}, host[4] = {10, 0, 2, 2};
    u8 frame[14 + 20 + 8 + 5];
    memset(frame, 0, sizeof frame);
    memcpy(frame, router, 6); memcpy(frame + 6, nic->mac, 6); put16(frame + 12, 0x0800);
    u8 *ip = frame + 14;
    ip[0] = 0x45; put16(ip + 2, sizeof frame - 14); ip[8] = 64; ip[9] = 17;
    memcpy(ip + 12, nic->ip, 4); memcpy(ip + 16, host, 4);
    put16(ip + 10, checksum(ip, 20));
    put16(ip + 20, 7000); put16(ip + 22, port); put16(ip + 24, 13);
    memcpy(ip + 28, "hello", 5);
    transmit(nic, frame, sizeof frame);
}

/* -- all of it --------------------------------------------------------------------------------------- */
void run(const u32 *information)
{
    static char line[4096];
    const char *from = NULL;
    if (information[0] == 0x336ec578) from = (const char *)information[6]; /* PVH's hvm_start_info */
    else if (information[0] & 4) from = (const char *)information[4];      /* multiboot's information */
    if (from) {
        for (u32 i = 0; i < sizeof line - 1 && from[i]; i++) line[i] = from[i];
    }
    say("kernel: started: "); say(line); say("\n");
    const char *text = argument(line, "exit=");
    if (text) leave(number(&text));
    u32 count = 0;
    for (u32 device = 0; device < 32; device++) {
        u32 id = pci(device, 0);
        if (id == 0x10011af4) show_disk(device_up(device));
        if (id == 0x10001af4 && count < 2) nic_up(&nics[count++], device);
    }
    u32 port = 0;
    if ((text = argument(line, "ip=")))
        for (u32 i = 0; i < 4; i++, text++) nics[0].ip[i] = (u8)number(&text);
    if (count) memcpy(nics[count - 1].ip, argument(line, "ip=") && count == 1 ? nics[0].ip : (const u8[]){10, 0, 2, 15}, 4);
    if ((text = argument(line, "ask="))) port = number(&text);
    say("kernel: ready\n");
    for (u32 turn = 0;; turn++) {
        if (port && !asked && turn % 2000000 == 0) ask(&nics[count - 1], (u16)port);
        for (u32 i = 0; i < count; i++) {
            volatile struct element *one = done(&nics[i].receive);
            if (!one) continue;
            u16 at = (u16)one->id;
            if (one->size > HEADER) received(&nics[i], nics[i].frames[at] + HEADER, one->size - HEADER);
            offer(&nics[i].receive, at);
        }
        __asm__ volatile("pause");
    }
}
