/* Send and receive along links with librabbitmq (Debian: librabbitmq-dev):
 *
 *     cc -o mail mail.c -lrabbitmq
 *     mail send EXCHANGE TEXT        mail receive MAILBOX
 *
 * The names are those of /run/netspace/environment.json, which a program would read by a JSON library;
 * port, vhost and files are those that the host gives every environment that logs in by certificate.
 */
#include <rabbitmq-c/amqp.h>
#include <rabbitmq-c/ssl_socket.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

static const char IDENTITY[] = "/run/netspace/identity.pem"; /* key and certificate; replaced from time to time */

static void die(const char *what)
{
    fprintf(stderr, "%s\n", what);
    exit(1);
}

static void ok(amqp_rpc_reply_t reply, const char *what)
{
    if (reply.reply_type == AMQP_RESPONSE_NORMAL)
        return;
    if (reply.reply_type == AMQP_RESPONSE_LIBRARY_EXCEPTION)
        fprintf(stderr, "%s: ", amqp_error_string2(reply.library_error));
    die(what);
}

int main(int count, char **words)
{
    if (count < 3 || (count < 4 && !strcmp(words[1], "send")))
        die("usage: mail send EXCHANGE TEXT | mail receive MAILBOX");
    const char *vhost = getenv("NETSPACE_VHOST") ? getenv("NETSPACE_VHOST") : "netspace";
    amqp_connection_state_t link = amqp_new_connection();
    amqp_socket_t *tls = amqp_ssl_socket_new(link);
    if (amqp_ssl_socket_set_cacert(tls, "/run/netspace/ca.pem") || amqp_ssl_socket_set_key(tls, IDENTITY, IDENTITY))
        die("no credentials in /run/netspace");
    amqp_ssl_socket_set_verify_peer(tls, 1);
    amqp_ssl_socket_set_verify_hostname(tls, 1);
    if (amqp_socket_open(tls, "127.0.0.1", 5671))
        die("the broker isn't there, or isn't who it says");
    /* Who this is, the certificate says; the library wants a word here, the broker none. */
    ok(amqp_login(link, vhost, 1, 131072, 30, AMQP_SASL_METHOD_EXTERNAL, "environment"), "not let in");
    amqp_channel_open(link, 1);
    ok(amqp_get_rpc_reply(link), "no channel");

    if (!strcmp(words[1], "send")) {
        amqp_basic_properties_t about = {._flags = AMQP_BASIC_DELIVERY_MODE_FLAG, .delivery_mode = 2};
        amqp_frame_t answer;
        amqp_confirm_select(link, 1);
        ok(amqp_get_rpc_reply(link), "no confirms");
        amqp_basic_publish(link, 1, amqp_cstring_bytes(words[2]), amqp_empty_bytes, 1, 0, &about,
                           amqp_cstring_bytes(words[3]));
        if (amqp_simple_wait_frame(link, &answer) || answer.frame_type != AMQP_FRAME_METHOD ||
            answer.payload.method.id != AMQP_BASIC_ACK_METHOD)
            die("not taken: revoked, or the mailbox is full");
    } else {
        amqp_envelope_t mail;
        amqp_basic_consume(link, 1, amqp_cstring_bytes(words[2]), amqp_empty_bytes, 0, 0, 0, amqp_empty_table);
        ok(amqp_get_rpc_reply(link), "no such mailbox");
        ok(amqp_consume_message(link, &mail, NULL, 0), "nothing came");
        /* Who sent it is said by the exchange: compare it with those of "senders". */
        printf("%.*s: %.*s\n", (int)mail.exchange.len, (char *)mail.exchange.bytes, (int)mail.message.body.len,
               (char *)mail.message.body.bytes);
        amqp_basic_ack(link, 1, mail.delivery_tag, 0);
        amqp_destroy_envelope(&mail);
    }
    amqp_connection_close(link, AMQP_REPLY_SUCCESS);
    amqp_destroy_connection(link);
    return 0;
}
