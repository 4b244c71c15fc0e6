/*
 * The tests' kernel for Xen: PVH (32 bits, built with -m32 -DPVH) and PV (64 bits, -m64). It speaks to dom0 as any
 * guest does: a console ring, a xenstore ring, a grant table, netfront's two rings; nothing else. It waits by
 * SCHEDOP_poll, so that it costs nothing while nothing happens.
 *
 * Arguments: ip=A.B.C.D; exit=0 (it powers off), exit=1 (it reboots), exit=N (it crashes); polite=1: it obeys a request
 * to power off; loud=1: it writes to its console without end. UDP to port 7 saying "stop" ends it well, "fail" badly.
 * Before it is ready it sends a frame with another MAC, one with another address, and an honest one.
 */
#include <stddef.h>
#include <stdint.h>
#define __XEN_INTERFACE_VERSION__ 0x00040900
#include <xen/xen.h>
#include <xen/sched.h>
#include <xen/memory.h>
#include <xen/event_channel.h>
#include <xen/grant_table.h>
#include <xen/hvm/hvm_op.h>
#include <xen/hvm/params.h>
#include <xen/io/console.h>
#include <xen/io/xs_wire.h>
#include <xen/io/netif.h>
#include <xen/arch-x86/hvm/start_info.h>

typedef uint8_t u8;
typedef uint16_t u16;
typedef uint32_t u32;
typedef unsigned long word;

#define PAGE 4096
#define barrier() __asm__ volatile("lock orl $0, (%0)" : : "r"(&(int){0}) : "memory")
#define xen_mb barrier
#define xen_wmb barrier
#define xen_rmb barrier
extern u8 hypercall_page[];

#ifdef PVH
#define CALL(n, a, b, c, d) ({ long r_; word b_ = (word)(a), c_ = (word)(b), d_ = (word)(c), s_ = (word)(d); \
        __asm__ volatile("call *%[to]" : "=a"(r_), "+b"(b_), "+c"(c_), "+d"(d_), "+S"(s_) \
        : [to] "D"(hypercall_page + (n) * 32) : "memory"); r_; })
#else
#define CALL(n, a, b, c, d) ({ long r_; word b_ = (word)(a), c_ = (word)(b), d_ = (word)(c); \
        register word s_ __asm__("r10") = (word)(d); \
        __asm__ volatile("call *%[to]" : "=a"(r_), "+D"(b_), "+S"(c_), "+d"(d_), "+r"(s_) \
        : [to] "r"(hypercall_page + (n) * 32) : "memory", "rcx", "r11", "r8", "r9"); r_; })
#endif

void *memcpy(void *to, const void *from, size_t size)
{ u8 *a = to; const u8 *b = from; while (size--) *a++ = *b++; return to; }
void *memset(void *to, int value, size_t size)
{ u8 *a = to; while (size--) *a++ = (u8)value; return to; }
int memcmp(const void *one, const void *other, size_t size)
{ const u8 *a = one, *b = other; for (; size--; a++, b++) if (*a != *b) return *a - *b; return 0; }
static u32 length(const char *text) { u32 n = 0; while (text[n]) n++; return n; }

/* -- pages that are Xen's -------------------------------------------------------------------- */
static u8 shared_page[PAGE] __attribute__((aligned(PAGE)));
static u8 grant_page[PAGE] __attribute__((aligned(PAGE)));
static volatile struct shared_info *shared = (void *)shared_page;
static volatile struct grant_entry_v1 *grants = (void *)grant_page;
static volatile struct xencons_interface *console;
static volatile struct xenstore_domain_interface *store;
static evtchn_port_t console_port, store_port;
static char line[1024];
static const u8 *handed; /* the "ramdisk": what it is handed, in its own memory */

static void leave(u32 status)
{
    struct sched_shutdown end = {status == 0 ? SHUTDOWN_poweroff : status == 1 ? SHUTDOWN_reboot : SHUTDOWN_crash};
    for (;;) CALL(__HYPERVISOR_sched_op, SCHEDOP_shutdown, &end, 0, 0);
}

#ifdef PVH
static void map(void *page, unsigned space)
{
    struct xen_add_to_physmap what = {.domid = DOMID_SELF, .space = space, .idx = 0, .gpfn = (word)page / PAGE};
    if (CALL(__HYPERVISOR_memory_op, XENMEM_add_to_physmap, &what, 0, 0)) leave(9);
}
static word frame(const void *page) { return (word)page / PAGE; }
static u32 parameter(u32 index)
{
    struct xen_hvm_param what = {.domid = DOMID_SELF, .index = index};
    if (CALL(__HYPERVISOR_hvm_op, HVMOP_get_param, &what, 0, 0)) leave(8);
    return (u32)what.value;
}
static void come_up(const struct hvm_start_info *info)
{
    u32 a, b, c, d, base = 0x40000000;
    for (; base < 0x40010000; base += 0x100) {
        __asm__ volatile("cpuid" : "=a"(a), "=b"(b), "=c"(c), "=d"(d) : "a"(base), "c"(0));
        if (b == 0x566e6558) break;
    }
    __asm__ volatile("cpuid" : "=a"(a), "=b"(b), "=c"(c), "=d"(d) : "a"(base + 2), "c"(0));
    __asm__ volatile("wrmsr" : : "c"(b), "a"((word)hypercall_page), "d"(0));
    map(shared_page, XENMAPSPACE_shared_info);
    map(grant_page, XENMAPSPACE_grant_table);
    console = (void *)(parameter(HVM_PARAM_CONSOLE_PFN) * PAGE); console_port = parameter(HVM_PARAM_CONSOLE_EVTCHN);
    store = (void *)(parameter(HVM_PARAM_STORE_PFN) * PAGE); store_port = parameter(HVM_PARAM_STORE_EVTCHN);
    const char *from = (const char *)(word)info->cmdline_paddr;
    for (u32 i = 0; from && i < sizeof line - 1 && from[i]; i++) line[i] = from[i];
    if (info->nr_modules) handed = (const u8 *)(word)((const struct hvm_modlist_entry *)(word)info->modlist_paddr)->paddr;
}
#else
static const word *frames; /* pfn -> mfn */
static word frame(const void *page) { return frames[(word)page / PAGE]; }
static void map(void *page, word mfn)
{
    if (CALL(__HYPERVISOR_update_va_mapping, page, mfn * PAGE | 0x67, UVMF_INVLPG, 0)) leave(9);
}
static void *found(word mfn) { return (void *)(((const word *)0xffff800000000000)[mfn] * PAGE); }
static void come_up(const struct start_info *info)
{
    frames = (const word *)info->mfn_list;
    console = found(info->console.domU.mfn); console_port = info->console.domU.evtchn;
    store = found(info->store_mfn); store_port = info->store_evtchn;
    map(shared_page, info->shared_info / PAGE);
    static word list[1];
    struct gnttab_setup_table what = {.dom = DOMID_SELF, .nr_frames = 1};
    set_xen_guest_handle(what.frame_list, list);
    if (CALL(__HYPERVISOR_grant_table_op, GNTTABOP_setup_table, &what, 1, 0) || what.status) leave(7);
    map(grant_page, list[0]);
    memcpy(line, info->cmd_line, sizeof line - 1);
    if (info->mod_len) handed = (const u8 *)(info->mod_start * (info->flags & SIF_MOD_START_PFN ? PAGE : 1));
}
#endif

/* -- waiting and telling ------------------------------------------------------------------------ */
static void notify(evtchn_port_t port)
{
    struct evtchn_send what = {port};
    barrier();
    CALL(__HYPERVISOR_event_channel_op, EVTCHNOP_send, &what, 0, 0);
}

/* Until an event has come since the last call. Look only after it has returned. */
static void await(evtchn_port_t port)
{
    evtchn_port_t ports[1] = {port};
    struct sched_poll what = {.nr_ports = 1, .timeout = 0};
    set_xen_guest_handle(what.ports, ports);
    CALL(__HYPERVISOR_sched_op, SCHEDOP_poll, &what, 0, 0);
}

static void cleared(evtchn_port_t port)
{
    word bits = 8 * sizeof(word);
    __asm__ volatile("lock btr %1, %0" : "+m"(shared->evtchn_pending[port / bits]) : "r"((word)(port % bits)) : "memory");
}

static void put(const char *text, u32 size)
{
    for (u32 i = 0; i < size; i++) {
        while (console->out_prod - console->out_cons >= sizeof console->out) {
            cleared(console_port); notify(console_port);
            if (console->out_prod - console->out_cons >= sizeof console->out) await(console_port);
        }
        console->out[console->out_prod % sizeof console->out] = text[i];
        barrier();
        console->out_prod++;
    }
    notify(console_port);
}
static void say(const char *text) { put(text, length(text)); }
static void say_bytes(const u8 *bytes, u32 size)
{
    u32 n = 0;
    while (n < size && bytes[n] >= ' ' && bytes[n] < 127) n++;
    put((const char *)bytes, n);
}

/* -- xenstore ----------------------------------------------------------------------------------------- */
static void send_bytes(const void *from, u32 size)
{
    for (const char *at = from; size--; at++) {
        while (store->req_prod - store->req_cons >= XENSTORE_RING_SIZE) { notify(store_port); }
        store->req[MASK_XENSTORE_IDX(store->req_prod)] = *at;
        barrier();
        store->req_prod++;
    }
}
static void receive_bytes(void *to, u32 size, u32 room)
{
    for (char *at = to; size--; ) {
        while (store->rsp_prod == store->rsp_cons) {
            cleared(store_port); notify(store_port);
            if (store->rsp_prod == store->rsp_cons) await(store_port);
        }
        barrier();
        char one = store->rsp[MASK_XENSTORE_IDX(store->rsp_cons)];
        store->rsp_cons++;
        if (room) { *at++ = one; room--; }
    }
}
static int ask_store(u32 type, const char *path, const char *value, char *answer, u32 room)
{
    struct xsd_sockmsg head = {type, 1, 0, length(path) + 1 + (value ? length(value) : 0)};
    send_bytes(&head, sizeof head);
    send_bytes(path, length(path) + 1);
    if (value) send_bytes(value, length(value));
    notify(store_port);
    receive_bytes(&head, sizeof head, sizeof head);
    memset(answer, 0, room);
    receive_bytes(answer, head.len, room - 1);
    return head.type == type ? 0 : -1;
}
static char *joined(const char *one, const char *other)
{
    static char all[256];
    memcpy(all, one, length(one)); memcpy(all + length(one), other, length(other) + 1);
    return all;
}
static int read_key(const char *folder, const char *key, char *answer, u32 room)
{ return ask_store(XS_READ, joined(folder, key), NULL, answer, room); }
static void write_key(const char *folder, const char *key, const char *value)
{ char ok[32]; if (ask_store(XS_WRITE, joined(folder, key), value, ok, sizeof ok)) say("xenstore: refused\n"); }
static const char *text_of(u32 value)
{
    static char text[12];
    char *at = text + sizeof text - 1;
    do *--at = (char)('0' + value % 10); while (value /= 10);
    return at;
}
static u32 number(const char **text)
{ u32 value = 0; while (**text >= '0' && **text <= '9') value = value * 10 + (u32)(*(*text)++ - '0'); return value; }
static const char *argument(const char *name)
{
    for (const char *at = line; *at; at++)
        if ((at == line || at[-1] == ' ') && !memcmp(at, name, length(name))) return at + length(name);
    return NULL;
}

/* -- the network ------------------------------------------------------------------------------------------ */
enum { FRAMES = 64 };
struct nic { u8 mac[6], ip[4]; };
static struct nic nic;
static union { struct netif_tx_sring ring; u8 page[PAGE]; } send_page __attribute__((aligned(PAGE)));
static union { struct netif_rx_sring ring; u8 page[PAGE]; } receive_page __attribute__((aligned(PAGE)));
static netif_tx_front_ring_t sending;
static netif_rx_front_ring_t receiving;
static u8 buffers[FRAMES][PAGE] __attribute__((aligned(PAGE))), out[PAGE] __attribute__((aligned(PAGE)));
static evtchn_port_t nic_port;

static grant_ref_t grant(const void *page)
{
    static grant_ref_t next = 8; /* the first are the toolstack's */
    grants[next].domid = 0;
    grants[next].frame = (u32)frame(page);
    barrier();
    grants[next].flags = GTF_permit_access;
    return next++;
}
static void transmit(struct nic *to, const u8 *bytes, u32 size)
{
    static grant_ref_t granted;
    (void)to;
    if (!granted) granted = grant(out);
    memcpy(out, bytes, size);
    *RING_GET_REQUEST(&sending, sending.req_prod_pvt) =
        (struct netif_tx_request){.gref = granted, .offset = 0, .flags = 0, .id = 0, .size = (u16)size};
    sending.req_prod_pvt++;
    sending.sring->rsp_event = sending.rsp_cons + 1;
    int wanted; /* an event that isn't has Linux's backend wait longer and longer (XEN_EOI_FLAG_SPURIOUS) */
    RING_PUSH_REQUESTS_AND_CHECK_NOTIFY(&sending, wanted);
    if (wanted) notify(nic_port);
    /* Linux's backend may miss an event that comes while it begins: it is told again. */
    for (u32 turn = 1; *(volatile RING_IDX *)&sending.sring->rsp_prod == sending.rsp_cons; turn++) {
        if (turn % 256 == 0) notify(nic_port);
        CALL(__HYPERVISOR_sched_op, SCHEDOP_yield, 0, 0, 0);
    }
    sending.rsp_cons++;
}

#include "answers.h"

static void offer(u16 id)
{
    static grant_ref_t granted[FRAMES];
    if (!granted[id]) granted[id] = grant(buffers[id]);
    *RING_GET_REQUEST(&receiving, receiving.req_prod_pvt) = (struct netif_rx_request){.id = id, .gref = granted[id]};
    receiving.req_prod_pvt++;
    int wanted;
    RING_PUSH_REQUESTS_AND_CHECK_NOTIFY(&receiving, wanted);
    if (wanted && nic_port) notify(nic_port);
}

/* UDP to the gateway's port 7000, from a MAC and from an address that aren't its own: nobody may get them. Then the truth. */
static void forge(void)
{
    static const u8 head[] = {0x45, 0, 0, 32, 0, 0, 0, 0, 64, 17};
    for (int way = 0; way < 3; way++) {
        u8 frame[46] = {0};
        memcpy(frame, nic.mac, 6); frame[0] ^= 4; /* the gateway's, as the kind tap has it */
        memcpy(frame + 6, nic.mac, 6); frame[12] = 8;
        if (way == 0) frame[11] ^= 1;
        memcpy(frame + 14, head, sizeof head);
        memcpy(frame + 26, nic.ip, 4); memcpy(frame + 30, nic.ip, 4);
        frame[32] = 0; frame[33] = 1; /* the gateway is the first address of its network */
        if (way == 1) frame[29] ^= 1;
        put16(frame + 24, checksum(frame + 14, 20));
        put16(frame + 34, 7000); put16(frame + 36, 7000); put16(frame + 38, 12);
        memcpy(frame + 42, way == 2 ? "true" : "lies", 4);
        transmit(&nic, frame, sizeof frame);
    }
}

static void await_state(const char *backend, char wanted)
{
    char state[8];
    do {
        if (read_key(backend, "/state", state, sizeof state)) leave(6);
        if (state[0] != wanted) CALL(__HYPERVISOR_sched_op, SCHEDOP_yield, 0, 0, 0);
    } while (state[0] != wanted);
}

static int nic_up(void)
{
    static const char folder[] = "device/vif/0";
    char backend[128], text[32];
    if (read_key(folder, "/backend", backend, sizeof backend)) return 0;
    read_key(folder, "/mac", text, sizeof text);
    for (u32 i = 0; i < 6; i++)
        for (u32 j = 0; j < 2; j++) {
            char c = text[3 * i + j];
            nic.mac[i] = (u8)(nic.mac[i] << 4 | (c <= '9' ? c - '0' : (c | 32) - 'a' + 10));
        }
    SHARED_RING_INIT(&send_page.ring); FRONT_RING_INIT(&sending, &send_page.ring, PAGE);
    SHARED_RING_INIT(&receive_page.ring); FRONT_RING_INIT(&receiving, &receive_page.ring, PAGE);
    for (u16 i = 0; i < FRAMES; i++) offer(i);
    struct evtchn_alloc_unbound what = {.dom = DOMID_SELF, .remote_dom = 0};
    if (CALL(__HYPERVISOR_event_channel_op, EVTCHNOP_alloc_unbound, &what, 0, 0)) leave(5);
    nic_port = what.port;
    await_state(backend, '2');
    write_key(folder, "/tx-ring-ref", text_of(grant(&send_page.ring)));
    write_key(folder, "/rx-ring-ref", text_of(grant(&receive_page.ring)));
    write_key(folder, "/event-channel", text_of(nic_port));
    write_key(folder, "/request-rx-copy", "1");
    write_key(folder, "/feature-rx-notify", "1");
    write_key(folder, "/feature-no-csum-offload", "1");
    write_key(folder, "/state", "4");
    await_state(backend, '4');
    return 1;
}

void run(const void *information)
{
    come_up(information);
    say("kernel: started: "); say(line); say("\n");
    if (handed) { say("disk: "); say_bytes(handed, 100); say(" "); say_bytes(handed + 512, 512); say("\n"); }
    const char *text = argument("exit=");
    if (text) leave(number(&text));
    if ((text = argument("ip=")))
        for (u32 i = 0; i < 4; i++, text++) nic.ip[i] = (u8)number(&text);
    if (argument("loud=")) for (;;) say("<0>kernel: loud loud loud loud loud loud loud loud loud loud loud\n");
    if (argument("polite=")) {
        char asked_for[16];
        write_key("control", "/feature-poweroff", "1");
        say("kernel: polite\n");
        do read_key("control", "/shutdown", asked_for, sizeof asked_for);
        while (memcmp(asked_for, "poweroff", 8));
        say("kernel: asked to power off\n");
        leave(0);
    }
    int there = nic_up();
    if (there) forge();
    say(there ? "kernel: ready\n" : "kernel: ready, no interface\n");
    if (!there) for (;;) await(store_port), cleared(store_port);
    for (;;) {
        cleared(nic_port);
        receiving.sring->rsp_event = receiving.rsp_cons + 1;
        barrier();
        if (*(volatile RING_IDX *)&receiving.sring->rsp_prod == receiving.rsp_cons) { await(nic_port); continue; }
        while (*(volatile RING_IDX *)&receiving.sring->rsp_prod != receiving.rsp_cons) {
            struct netif_rx_response one = *RING_GET_RESPONSE(&receiving, receiving.rsp_cons);
            receiving.rsp_cons++;
            if (one.status > 0) received(&nic, buffers[one.id] + one.offset, (u32)one.status);
            offer(one.id);
        }
    }
}
