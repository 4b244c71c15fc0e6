/*
 * What the tests' own guests answer on their network: ARP, ICMP echo and UDP echo (port 7), whose texts "stop" and
 * "fail" end them. Before it is included there are struct nic (mac, ip), transmit, say, say_bytes and leave.
 */
static u16 checksum(const u8 *bytes, u32 size)
{
    u32 sum = 0;
    for (u32 i = 0; i + 1 < size; i += 2) sum += (u32)bytes[i] << 8 | bytes[i + 1];
    if (size & 1) sum += (u32)bytes[size - 1] << 8;
    while (sum >> 16) sum = (sum & 0xffff) + (sum >> 16);
    return (u16)~sum;
}

static void put16(u8 *at, u16 value) { at[0] = (u8)(value >> 8); at[1] = (u8)value; }
static u16 get16(const u8 *at) { return (u16)(at[0] << 8 | at[1]); }

static void swap(u8 *one, u8 *other, u32 size)
{
    for (u32 i = 0; i < size; i++) { u8 kept = one[i]; one[i] = other[i]; other[i] = kept; }
}

static int asked; /* an answer to what it asked has come */

static void received(struct nic *nic, u8 *frame, u32 size)
{
    if (size >= 42 && get16(frame + 12) == 0x0806 && get16(frame + 20) == 1 && !memcmp(frame + 38, nic->ip, 4)) {
        memcpy(frame, frame + 6, 6); memcpy(frame + 6, nic->mac, 6);
        frame[21] = 2;
        memcpy(frame + 32, frame + 22, 10);
        memcpy(frame + 22, nic->mac, 6); memcpy(frame + 28, nic->ip, 4);
        transmit(nic, frame, 42);
        return;
    }
    u8 *ip = frame + 14, *data = frame + 34;
    if (size < 42 || get16(frame + 12) != 0x0800 || ip[0] != 0x45 || memcmp(ip + 16, nic->ip, 4)) return;
    u32 length = get16(ip + 2);
    if (length < 28 || length + 14 > size) return;
    if (ip[9] == 17 && get16(data + 2) == 7000) {
        if (!asked) { say("answer: "); say_bytes(data + 8, length - 28); say("\n"); }
        asked = 1;
        return;
    }
    int stop = ip[9] == 17 && length == 32 && !memcmp(data + 8, "stop", 4);
    int fail = ip[9] == 17 && length == 32 && !memcmp(data + 8, "fail", 4);
    if (ip[9] == 1 && data[0] == 8) {
        data[0] = 0;
        put16(data + 2, 0);
        put16(data + 2, checksum(data, length - 20));
    } else if (ip[9] == 17 && get16(data + 2) == 7) {
        swap(data, data + 2, 2);
        put16(data + 6, 0); /* none */
    } else return;
    memcpy(frame, frame + 6, 6); memcpy(frame + 6, nic->mac, 6);
    swap(ip + 12, ip + 16, 4);
    transmit(nic, frame, length + 14);
    if (stop) { say("told to stop\n"); leave(0); }
    if (fail) leave(3);
}
