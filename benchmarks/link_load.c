/* What a message costs, by librabbitmq: one round trip at a time, or many with confirms in flight.
 *
 * usage: link_load rtt|confirm COUNT VHOST EXCHANGE QUEUE SENDER RECEIVER
 *
 * SENDER and RECEIVER say how each logs in: NETNS,PORT,USER,PASSWORD or NETNS,PORT,IDENTITY.pem,CA.pem,tls
 * (NETNS: a path, or - for where this runs). Prints microseconds for a round trip, or messages a second.
 */
#define _GNU_SOURCE
#include <fcntl.h>
#include <netinet/in.h>
#include <rabbitmq-c/amqp.h>
#include <rabbitmq-c/ssl_socket.h>
#include <rabbitmq-c/tcp_socket.h>
#include <sched.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>
#include <unistd.h>

enum { WINDOW = 512, SIZE = 64 };

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

static void publish(amqp_connection_state_t link, char *exchange)
{
    static char body[SIZE];
    amqp_bytes_t bytes = {SIZE, body};
    if (amqp_basic_publish(link, 1, amqp_cstring_bytes(exchange), amqp_empty_bytes, 0, 0, NULL, bytes))
        die("not sent");
}

int main(int count, char **words)
{
    if (count != 8)
        die("see the source");
    int many = atoi(words[2]);
    amqp_connection_state_t sender = connect_as(words[6], words[3]), receiver = connect_as(words[7], words[3]);
    if (!strcmp(words[1], "rtt")) {
        amqp_basic_consume(receiver, 1, amqp_cstring_bytes(words[5]), amqp_empty_bytes, 0, 1, 0, amqp_empty_table);
        ok(amqp_get_rpc_reply(receiver), "no queue");
        amqp_envelope_t mail;
        double begun = 0;
        for (int i = -many / 10; i < many; i++) {
            if (i == 0)
                begun = now();
            publish(sender, words[4]);
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
            publish(sender, words[4]);
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
