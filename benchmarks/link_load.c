/* What a message costs, by librabbitmq: one round trip at a time, or many with confirms in flight.
 *
 * usage: link_load rtt|confirm COUNT VHOST EXCHANGE QUEUE SENDER RECEIVER
 *
 * SENDER and RECEIVER say how each logs in: NETNS,PORT,USER,PASSWORD or NETNS,PORT,IDENTITY.pem,CA.pem,tls
 * (NETNS: a path, or - for where this runs). Prints microseconds for a round trip, or messages a second.
 *
 * librabbitmq gives each of a message's three frames to TLS by itself: three records, and three packets. netspace-client
 * writes a message at once. So messages are put together and written here, on either transport.
 */
#define _GNU_SOURCE
#include <endian.h>
#include <errno.h>
#include <fcntl.h>
#include <netinet/in.h>
#include <openssl/ssl.h>
#include <poll.h>
#include <rabbitmq-c/amqp.h>
#include <rabbitmq-c/ssl_socket.h>
#include <rabbitmq-c/tcp_socket.h>
#include <sched.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <time.h>
#include <unistd.h>

enum { WINDOW = 512, SIZE = 64 };

static SSL *newest;

static void note(const SSL *ssl, int where, int how)
{
    (void)how;
    if (where & SSL_CB_HANDSHAKE_START)
        newest = (SSL *)ssl;
}

static void die(const char *what)
{
    fprintf(stderr, "link_load: %s\n", what);
    exit(1);
}

static void ok(amqp_rpc_reply_t reply, const char *what)
{
    if (reply.reply_type != AMQP_RESPONSE_NORMAL)
        die(what);
}

static amqp_connection_state_t connect_as(char *spec, const char *vhost)
{
    char *words[5] = {0};
    for (int i = 0; i < 5; i++)
        words[i] = strsep(&spec, ",");
    int home = open("/proc/self/ns/net", O_RDONLY | O_CLOEXEC), there = -1;
    if (strcmp(words[0], "-") && ((there = open(words[0], O_RDONLY | O_CLOEXEC)) < 0 || setns(there, CLONE_NEWNET)))
        die("no such namespace");
    amqp_connection_state_t link = amqp_new_connection();
    int tls = words[4] && !strcmp(words[4], "tls");
    amqp_socket_t *socket = tls ? amqp_ssl_socket_new(link) : amqp_tcp_socket_new(link);
    if (tls) {
        if (amqp_ssl_socket_set_cacert(socket, words[3]) || amqp_ssl_socket_set_key(socket, words[2], words[2]))
            die("no credentials");
        SSL_CTX_set_info_callback(amqp_ssl_socket_get_context(socket), note);
        amqp_ssl_socket_set_verify_peer(socket, 1);
        amqp_ssl_socket_set_verify_hostname(socket, 1);
    }
    if (amqp_socket_open(socket, "127.0.0.1", atoi(words[1])))
        die("no connection");
    ok(tls ? amqp_login(link, vhost, 1, 131072, 0, AMQP_SASL_METHOD_EXTERNAL, "x")
           : amqp_login(link, vhost, 1, 131072, 0, AMQP_SASL_METHOD_PLAIN, words[2], words[3]),
       "not let in");
    amqp_channel_open(link, 1);
    ok(amqp_get_rpc_reply(link), "no channel");
    if (there >= 0 && setns(home, CLONE_NEWNET))
        die("no way back");
    return link;
}

static double now(void)
{
    struct timespec time;
    clock_gettime(CLOCK_MONOTONIC, &time);
    return time.tv_sec + time.tv_nsec / 1e9;
}

static char *frame(char *at, char kind, const void *payload, uint32_t size)
{
    uint32_t big = htobe32(size);
    *at++ = kind;
    *at++ = 0;
    *at++ = 1; /* channel */
    at = (char *)mempcpy(at, &big, 4);
    at = (char *)mempcpy(at, payload, size);
    *at++ = (char)0xce;
    return at;
}

/* One message, as it is on the wire: https://www.rabbitmq.com/resources/specs/amqp0-9-1.pdf, 4.2.3 */
static size_t message(char *at, const char *exchange)
{
    char *start = at, method[300] = "\0\x3c\0\x28\0\0", header[14] = "\0\x3c", body[SIZE] = {0};
    size_t length = strlen(exchange);
    uint64_t size = htobe64(SIZE);
    method[6] = (char)length;
    memcpy(method + 7, exchange, length);
    memcpy(header + 4, &size, 8);
    at = frame(at, AMQP_FRAME_METHOD, method, 7 + length + 2);
    at = frame(at, AMQP_FRAME_HEADER, header, sizeof header);
    return frame(at, AMQP_FRAME_BODY, body, SIZE) - start;
}

static void publish(int fd, SSL *ssl, const char *bytes, size_t size)
{
    while (size > 0) {
        ssize_t sent = ssl ? SSL_write(ssl, bytes, size) : send(fd, bytes, size, MSG_NOSIGNAL);
        if (sent > 0) {
            bytes += sent;
            size -= sent;
        } else if (ssl ? SSL_get_error(ssl, sent) == SSL_ERROR_WANT_WRITE : errno == EAGAIN) {
            struct pollfd room = {fd, POLLOUT, 0};
            poll(&room, 1, -1);
        } else
            die("not sent");
    }
}

int main(int count, char **words)
{
    if (count != 8)
        die("see the source");
    int many = atoi(words[2]);
    char bytes[1024];
    size_t size = message(bytes, words[4]);
    amqp_connection_state_t sender = connect_as(words[6], words[3]);
    int fd = amqp_get_sockfd(sender);
    SSL *ssl = newest;
    amqp_connection_state_t receiver = connect_as(words[7], words[3]);
    if (!strcmp(words[1], "rtt")) {
        amqp_basic_consume(receiver, 1, amqp_cstring_bytes(words[5]), amqp_empty_bytes, 0, 1, 0, amqp_empty_table);
        ok(amqp_get_rpc_reply(receiver), "no queue");
        amqp_envelope_t mail;
        double begun = 0;
        for (int i = -many / 10; i < many; i++) {
            if (i == 0)
                begun = now();
            publish(fd, ssl, bytes, size);
            ok(amqp_consume_message(receiver, &mail, NULL, 0), "nothing came");
            amqp_destroy_envelope(&mail);
            amqp_maybe_release_buffers(receiver);
        }
        printf("%.3f\n", (now() - begun) / many * 1e6);
        return 0;
    }
    /* Nobody reads meanwhile: what is measured is how fast the broker takes them. */
    amqp_confirm_select(sender, 1);
    ok(amqp_get_rpc_reply(sender), "no confirms");
    int sent = 0, confirmed = 0;
    double begun = now();
    while (confirmed < many) {
        for (; sent < many && sent - confirmed < WINDOW; sent++)
            publish(fd, ssl, bytes, size);
        amqp_frame_t frame;
        if (amqp_simple_wait_frame(sender, &frame) || frame.frame_type != AMQP_FRAME_METHOD ||
            frame.payload.method.id != AMQP_BASIC_ACK_METHOD)
            die("not confirmed");
        amqp_basic_ack_t *ack = frame.payload.method.decoded;
        confirmed = ack->multiple || (int)ack->delivery_tag > confirmed ? (int)ack->delivery_tag : confirmed;
        amqp_maybe_release_buffers(sender);
    }
    printf("%.1f\n", many / (now() - begun));
    return 0;
}
