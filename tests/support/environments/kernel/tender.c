/*
 * A stand-in for solo5-spt, which no distribution has: it takes the same arguments, and does with its descriptors
 * what that does (Solo5's tenders/spt and tenders/common/tap_attach.c tell it), then answers on its network
 * in its guest's place. The guest itself, whose code solo5-spt would run, is only looked at.
 *
 * --mem=MIB [--block:NAME=FILE] [--net:NAME=TAP [--net-mac:NAME=MAC]] -- KERNEL [ip=A.B.C.D] ARGUMENT...
 */
#define _GNU_SOURCE
#include <err.h>
#include <fcntl.h>
#include <ifaddrs.h>
#include <linux/if.h>
#include <linux/if_tun.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/epoll.h>
#include <sys/ioctl.h>
#include <sys/random.h>
#include <sys/socket.h>
#include <unistd.h>

typedef uint8_t u8;
typedef uint16_t u16;
typedef uint32_t u32;

struct nic { int device; u8 mac[6], ip[4]; };

static void say_bytes(const u8 *bytes, u32 size)
{
    for (u32 i = 0; i < size && bytes[i] >= ' ' && bytes[i] < 127; i++) putchar(bytes[i]);
}

static void say(const char *text) { fputs(text, stdout); }
static void leave(u32 status) { exit((int)status); }

static void transmit(struct nic *nic, const u8 *frame, u32 size)
{
    if (write(nic->device, frame, size) != (ssize_t)size) err(1, "write");
}

#include "answers.h"

static int attach(const char *name)
{
    struct ifaddrs *all;
    int up = 0;
    if (getifaddrs(&all)) err(1, "getifaddrs");
    for (struct ifaddrs *one = all; one; one = one->ifa_next)
        if (!strcmp(one->ifa_name, name)) up = !!(one->ifa_flags & IFF_UP);
    freeifaddrs(all);
    if (!up) errx(1, "%s is not there, or down", name);
    int device = open("/dev/net/tun", O_RDWR | O_NONBLOCK);
    if (device < 0) err(1, "/dev/net/tun");
    struct ifreq request = {.ifr_flags = IFF_TAP | IFF_NO_PI};
    snprintf(request.ifr_name, IFNAMSIZ, "%s", name);
    if (ioctl(device, TUNSETIFF, &request)) err(1, "TUNSETIFF %s", name);
    int asking = socket(AF_INET, SOCK_DGRAM, 0);
    if (asking < 0 || ioctl(asking, SIOCGIFMTU, &request)) err(1, "SIOCGIFMTU");
    close(asking);
    printf("net: %s, mtu %d\n", name, request.ifr_mtu);
    return device;
}

static void try_disk(const char *path)
{
    u8 blocks[1024], other[512];
    int disk = open(path, O_RDWR);
    if (disk < 0) err(1, "%s", path);
    off_t size = lseek(disk, 0, SEEK_END);
    if (size < 1024 || size % 512) errx(1, "%s: %ld bytes", path, (long)size);
    if (pread(disk, blocks, sizeof blocks, 0) != sizeof blocks) err(1, "pread");
    say("disk: "); say_bytes(blocks, 100); say(" "); say_bytes(blocks + 512, 512); say("\n");
    memset(other, 'x', sizeof other);
    if (pwrite(disk, other, sizeof other, 0) != sizeof other) err(1, "pwrite");
    say("disk: written\n");
}

int main(int count, char **arguments)
{
    static char disk[256], tap[IFNAMSIZ], magic[4];
    struct nic nic = {.device = -1};
    int at = 1, memory = 0, has_mac = 0;
    setvbuf(stdout, NULL, _IONBF, 0);
    for (; at < count && strcmp(arguments[at], "--"); at++) {
        unsigned m[6];
        char *text = arguments[at];
        if (sscanf(text, "--net-mac:%*[A-Za-z0-9]=%2x:%2x:%2x:%2x:%2x:%2x",
                   m, m + 1, m + 2, m + 3, m + 4, m + 5) == 6) {
            for (int i = 0; i < 6; i++) nic.mac[i] = (u8)m[i];
            has_mac = 1;
        } else if (sscanf(text, "--mem=%d", &memory) != 1 && sscanf(text, "--block:%*[A-Za-z0-9]=%255s", disk) != 1
                   && sscanf(text, "--net:%*[A-Za-z0-9]=%15s", tap) != 1) errx(1, "what is %s?", text);
    }
    if (at + 1 >= count || memory <= 0) errx(1, "no kernel, or no memory");
    int kernel = open(arguments[at + 1], O_RDONLY);
    if (kernel < 0 || read(kernel, magic, 4) != 4 || memcmp(magic, "\177ELF", 4))
        errx(1, "%s is no kernel", arguments[at + 1]);
    close(kernel);
    printf("tender: %d MiB for %s\n", memory, arguments[at + 1]);
    for (int i = at + 2; i < count; i++) {
        printf("argument: %s\n", arguments[i]);
        sscanf(arguments[i], "ip=%hhu.%hhu.%hhu.%hhu", nic.ip, nic.ip + 1, nic.ip + 2, nic.ip + 3);
    }
    if (*disk) try_disk(disk);
    if (!*tap) return 0;
    nic.device = attach(tap);
    if (!has_mac && getrandom(nic.mac, 6, 0) == 6) nic.mac[0] = (nic.mac[0] & 0xfc) | 2;
    int waiting = epoll_create1(EPOLL_CLOEXEC);
    struct epoll_event event = {.events = EPOLLIN};
    if (waiting < 0 || epoll_ctl(waiting, EPOLL_CTL_ADD, nic.device, &event)) err(1, "epoll");
    say("tender: ready\n");
    for (;;) {
        u8 frame[2048];
        if (epoll_wait(waiting, &event, 1, -1) < 0) continue;
        ssize_t size = read(nic.device, frame, sizeof frame);
        if (size > 0) received(&nic, frame, (u32)size);
    }
}
