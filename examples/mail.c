/* Send, receive and request along links with librabbitmq and json-c (Debian: librabbitmq-dev, libjson-c-dev):
 *
 *     cc -o mail mail.c -lrabbitmq -ljson-c
 *     mail send PEER TEXT        mail receive        mail request PEER TEXT
 */
#include <json-c/json.h>
#include <rabbitmq-c/amqp.h>
#include <rabbitmq-c/ssl_socket.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/random.h>
#include <sys/time.h>

static void die(const char *format, ...)
{
    va_list words;
    va_start(words, format);
    vfprintf(stderr, format, words);
    va_end(words);
    fputc('\n', stderr);
    exit(1);
}

static void ok(amqp_rpc_reply_t reply, const char *what)
{
    if (reply.reply_type == AMQP_RESPONSE_NORMAL)
        return;
    if (reply.reply_type == AMQP_RESPONSE_LIBRARY_EXCEPTION)
        die("%s: %s", what, amqp_error_string2(reply.library_error));
    die("%s", what);
}

static json_object *part(json_object *table, const char *key)
{
    json_object *value;
    if (!json_object_object_get_ex(table, key, &value))
        die("environment.json: there is no %s", key);
    return value;
}

static const char *text(json_object *table, const char *key)
{
    return json_object_get_string(part(table, key));
}

/* The entry of a list whose key has this value; NULL if there is none. */
static json_object *find(json_object *list, const char *key, const char *value, size_t length)
{
    for (size_t at = 0; at < json_object_array_length(list); at++) {
        json_object *entry = json_object_array_get_idx(list, at), *has;
        const char *said = json_object_object_get_ex(entry, key, &has) ? json_object_get_string(has) : NULL;
        if (said && strlen(said) == length && !memcmp(said, value, length))
            return entry;
    }
    return NULL;
}

static amqp_connection_state_t log_in(json_object *broker)
{
    json_object *tls = part(broker, "tls"); /* the files are replaced from time to time: read them at each connect */
    amqp_connection_state_t link = amqp_new_connection();
    amqp_socket_t *socket = amqp_ssl_socket_new(link);
    if (amqp_ssl_socket_set_cacert(socket, text(tls, "ca_file")) ||
        amqp_ssl_socket_set_key(socket, text(tls, "certificate_file"), text(tls, "key_file")))
        die("no credentials in /run/netspace");
    amqp_ssl_socket_set_verify_peer(socket, 1);
    amqp_ssl_socket_set_verify_hostname(socket, 1);
    if (amqp_socket_open(socket, text(broker, "host"), json_object_get_int(part(broker, "port"))))
        die("the broker isn't there, or isn't who it says");
    /* Who this is, the certificate says; the library wants a word here, the broker none. */
    ok(amqp_login(link, text(broker, "vhost"), 1, 131072, 30, AMQP_SASL_METHOD_EXTERNAL, "environment"), "not let in");
    amqp_channel_open(link, 1);
    ok(amqp_get_rpc_reply(link), "no channel");
    return link;
}

/* The peer of this name: the one that its link gives it here, which stays wherever it moves; or its own. */
static json_object *peer_of(json_object *me, const char *to)
{
    json_object *named = find(part(me, "peers"), "as", to, strlen(to));
    json_object *peer = named ? named : find(part(me, "peers"), "to", to, strlen(to));
    if (!peer)
        die("no link to %s is declared; see peers: %s", to, json_object_get_string(part(me, "peers")));
    if (json_object_object_get(peer, "broker"))
        die("%s is on another host, whose broker is asked for by a name; this library can't", to);
    return peer;
}

static void publish(json_object *peer, amqp_connection_state_t link, amqp_basic_properties_t about, const char *said)
{
    amqp_frame_t answer;
    about._flags |= AMQP_BASIC_DELIVERY_MODE_FLAG;
    about.delivery_mode = 2;
    amqp_confirm_select(link, 1);
    ok(amqp_get_rpc_reply(link), "no confirms");
    amqp_basic_publish(link, 1, amqp_cstring_bytes(text(peer, "exchange")), amqp_empty_bytes, 1, 0, &about,
                       amqp_cstring_bytes(said));
    if (amqp_simple_wait_frame(link, &answer) || answer.frame_type != AMQP_FRAME_METHOD ||
        answer.payload.method.id != AMQP_BASIC_ACK_METHOD)
        die("not taken: revoked, or the mailbox is full");
}

static void send_text(json_object *me, amqp_connection_state_t link, const char *to, const char *said)
{
    publish(peer_of(me, to), link, (amqp_basic_properties_t){0}, said);
}

static int same(amqp_bytes_t bytes, const char *word)
{
    return bytes.len == strlen(word) && !memcmp(bytes.bytes, word, bytes.len);
}

/* Print the answer of a peer, such as the host: request host '{"v": 1, "verb": "whoami"}' */
static void request(json_object *me, amqp_connection_state_t link, const char *to, const char *said)
{
    json_object *peer = peer_of(me, to), *replies;
    unsigned char raw[16];
    char key[33], address[512]; /* nobody else can guess where the answer goes */
    if (!json_object_object_get_ex(peer, "replies", &replies))
        die("the link to %s is for sending only", to);
    if (getrandom(raw, sizeof raw, 0) != sizeof raw)
        die("no random numbers");
    for (size_t at = 0; at < sizeof raw; at++)
        snprintf(key + 2 * at, 3, "%02x", raw[at]);
    const char *queue = text(replies, "queue"), *exchange = text(replies, "exchange");
    snprintf(address, sizeof address, "%s/%s", exchange, key);
    amqp_queue_bind(link, 1, amqp_cstring_bytes(queue), amqp_cstring_bytes(exchange), amqp_cstring_bytes(key),
                    amqp_empty_table);
    ok(amqp_get_rpc_reply(link), "no queue for answers: read environment.json again");
    publish(peer, link, (amqp_basic_properties_t){
        ._flags = AMQP_BASIC_REPLY_TO_FLAG | AMQP_BASIC_CORRELATION_ID_FLAG | AMQP_BASIC_MESSAGE_ID_FLAG,
        .reply_to = amqp_cstring_bytes(address),
        .correlation_id = amqp_cstring_bytes(key),
        .message_id = amqp_cstring_bytes(key),
    }, said);
    amqp_basic_consume(link, 1, amqp_cstring_bytes(queue), amqp_empty_bytes, 0, 0, 0, amqp_empty_table);
    ok(amqp_get_rpc_reply(link), "no queue for answers: read environment.json again");
    for (int answered = 0; !answered;) {
        amqp_envelope_t mail;
        struct timeval patience = {.tv_sec = 60};
        ok(amqp_consume_message(link, &mail, &patience, 0), "no answer came");
        answered = same(mail.exchange, exchange) && same(mail.message.properties.correlation_id, key);
        if (answered)
            printf("%.*s\n", (int)mail.message.body.len, (char *)mail.message.body.bytes);
        amqp_basic_ack(link, 1, mail.delivery_tag, 0);
        amqp_destroy_envelope(&mail);
    }
    amqp_queue_unbind(link, 1, amqp_cstring_bytes(queue), amqp_cstring_bytes(exchange), amqp_cstring_bytes(key),
                      amqp_empty_table);
}

/* The next message of a declared sender, whichever queue it came to. */
static void receive_text(json_object *me, amqp_connection_state_t link)
{
    json_object *queues = part(me, "queues"), *sender = NULL;
    /* One from each queue. Messages may have 16 MiB; where they are small, take more. */
    amqp_basic_qos(link, 1, 0, 1, 0);
    ok(amqp_get_rpc_reply(link), "no bound");
    for (size_t at = 0; at < json_object_array_length(queues); at++) {
        const char *queue = json_object_get_string(json_object_array_get_idx(queues, at));
        amqp_basic_consume(link, 1, amqp_cstring_bytes(queue), amqp_empty_bytes, 0, 0, 0, amqp_empty_table);
        ok(amqp_get_rpc_reply(link), "no such queue: read environment.json again");
    }
    while (!sender) {
        amqp_envelope_t mail;
        ok(amqp_consume_message(link, &mail, NULL, 0), "nothing came");
        sender = find(part(me, "senders"), "exchange", mail.exchange.bytes, mail.exchange.len);
        if (sender) {
            printf("%s: %.*s\n", text(sender, "from"), (int)mail.message.body.len, (char *)mail.message.body.bytes);
            amqp_basic_ack(link, 1, mail.delivery_tag, 0);
        } else {
            amqp_basic_reject(link, 1, mail.delivery_tag, 0); /* its link is revoked */
        }
        amqp_destroy_envelope(&mail);
    }
}

int main(int count, char **words)
{
    int sends = count == 4 && !strcmp(words[1], "send"), asks = count == 4 && !strcmp(words[1], "request");
    if (!sends && !asks && !(count == 2 && !strcmp(words[1], "receive")))
        die("usage: mail send PEER TEXT | mail receive | mail request PEER TEXT");
    json_object *me = json_object_from_file("/run/netspace/environment.json");
    if (!me)
        die("environment.json: %s", json_util_get_last_err());
    amqp_connection_state_t link = log_in(part(me, "broker"));
    if (sends)
        send_text(me, link, words[2], words[3]);
    else if (asks)
        request(me, link, words[2], words[3]);
    else
        receive_text(me, link);
    amqp_connection_close(link, AMQP_REPLY_SUCCESS);
    amqp_destroy_connection(link);
    json_object_put(me);
    return 0;
}
