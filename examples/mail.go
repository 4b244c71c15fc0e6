// Send, receive and request along links with amqp091-go: `mail send PEER TEXT`, `mail receive`, `mail request PEER TEXT`.
//
// With Debian's packages (golang-go, golang-github-rabbitmq-amqp091-go-dev):
//
//	GO111MODULE=off GOPATH=/usr/share/gocode go build mail.go
package main

import (
	"context"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"encoding/hex"
	"encoding/json"
	"fmt"
	"log"
	"os"
	"strings"
	"time"

	amqp "github.com/rabbitmq/amqp091-go"
)

type broker struct {
	Host  string
	Port  int
	Vhost string
	TLS   struct {
		ServerName      string `json:"server_name"`
		CAFile          string `json:"ca_file"`
		CertificateFile string `json:"certificate_file"`
		KeyFile         string `json:"key_file"`
	} `json:"tls"`
}

type peer struct {
	To, As, Exchange string  // As: what its link calls it here, wherever it moves
	Broker           *broker // of a peer on another host: that host's
	Replies          *struct{ Queue, Exchange string }
}

type card struct {
	Name    string
	Queues  []string
	Broker  broker
	Peers   []peer
	Senders []struct{ From, Exchange string }
}

func must[T any](value T, err error) T {
	if err != nil {
		log.Fatal(err)
	}
	return value
}

// connect reads the files each time: certificates are replaced long before they run out.
func connect(where broker) *amqp.Connection {
	files := where.TLS
	trusted := x509.NewCertPool()
	trusted.AppendCertsFromPEM(must(os.ReadFile(files.CAFile)))
	// One file, read once: a key and its certificate that belong together.
	pem := must(os.ReadFile(files.CertificateFile))
	key := pem
	if files.KeyFile != files.CertificateFile {
		key = must(os.ReadFile(files.KeyFile))
	}
	return must(amqp.DialConfig(fmt.Sprintf("amqps://%s:%d", where.Host, where.Port), amqp.Config{
		Vhost: where.Vhost,
		SASL:  []amqp.Authentication{&amqp.ExternalAuth{}},
		TLSClientConfig: &tls.Config{
			ServerName:   files.ServerName,
			RootCAs:      trusted,
			Certificates: []tls.Certificate{must(tls.X509KeyPair(pem, key))},
		},
	}))
}

// receive prints the next message of a declared sender, whichever of its queues it came to.
func receive(me card) {
	names := map[string]string{}
	for _, sender := range me.Senders {
		names[sender.Exchange] = sender.From
	}
	connection := connect(me.Broker)
	defer connection.Close()
	channel := must(connection.Channel())
	// From each queue. Messages may have 16 MiB; where they are small, take more.
	if err := channel.Qos(1, 0, false); err != nil {
		log.Fatal(err)
	}
	arrived := make(chan amqp.Delivery)
	for _, queue := range me.Queues {
		go func(deliveries <-chan amqp.Delivery) {
			for delivery := range deliveries {
				arrived <- delivery
			}
		}(must(channel.Consume(queue, "", false, false, false, false, nil)))
	}
	closed := channel.NotifyClose(make(chan *amqp.Error, 1))
	for {
		select {
		case delivery := <-arrived:
			sender, declared := names[delivery.Exchange]
			if !declared { // its link is revoked
				delivery.Reject(false)
				continue
			}
			fmt.Printf("%s: %s\n", sender, delivery.Body)
			delivery.Ack(false)
			return
		case err := <-closed:
			log.Fatal("the connection was lost: ", err)
		}
	}
}

// find returns a peer by the name that its link gives it here, or by its own.
func find(me card, to string) peer {
	known := []string{}
	for _, peer := range me.Peers {
		if known = append(known, peer.To); peer.To == to || (peer.As == to && to != "") {
			return peer
		}
	}
	log.Fatalf("no link to %s is declared; %s may send to: %s", to, me.Name, strings.Join(known, ", "))
	panic("")
}

// reach connects to the broker of a peer, and returns a channel that confirms each message.
func reach(me card, to peer) (*amqp.Connection, *amqp.Channel) {
	where := me.Broker
	if to.Broker != nil {
		where = *to.Broker
	}
	connection := connect(where)
	channel := must(connection.Channel())
	if err := channel.Confirm(false); err != nil {
		log.Fatal(err)
	}
	return connection, channel
}

func publish(channel *amqp.Channel, to peer, message amqp.Publishing) {
	context, cancel := context.WithTimeout(context.Background(), 10*time.Second)
	defer cancel()
	message.DeliveryMode = amqp.Persistent
	confirmed := must(channel.PublishWithDeferredConfirmWithContext(context, to.Exchange, "", true, false, message))
	if !must(confirmed.WaitContext(context)) {
		log.Fatal("the mailbox takes no more")
	}
}

func send(me card, to, text string) {
	peer := find(me, to)
	connection, channel := reach(me, peer)
	defer connection.Close()
	publish(channel, peer, amqp.Publishing{Body: []byte(text)})
}

func random() string {
	raw := make([]byte, 16)
	must(rand.Read(raw))
	return hex.EncodeToString(raw)
}

// request prints the answer of a peer, such as the host: request host '{"v": 1, "verb": "whoami"}'
func request(me card, to, text string) {
	peer := find(me, to)
	if peer.Replies == nil {
		log.Fatalf("the link to %s is for sending only", to)
	}
	connection, channel := reach(me, peer)
	defer connection.Close()
	key, id, replies := random(), random(), *peer.Replies // nobody else can guess where the answer goes
	if err := channel.QueueBind(replies.Queue, key, replies.Exchange, false, nil); err != nil {
		log.Fatal(err)
	}
	defer channel.QueueUnbind(replies.Queue, key, replies.Exchange, nil)
	answers := must(channel.Consume(replies.Queue, "", false, false, false, false, nil))
	publish(channel, peer, amqp.Publishing{
		Body: []byte(text), ReplyTo: replies.Exchange + "/" + key, CorrelationId: id, MessageId: id,
	})
	late := time.After(60 * time.Second)
	for {
		select {
		case answer, open := <-answers:
			if !open {
				log.Fatal("the connection was lost")
			}
			answer.Ack(false)
			if answer.Exchange == replies.Exchange && answer.CorrelationId == id {
				fmt.Printf("%s\n", answer.Body)
				return
			}
		case <-late:
			log.Fatalf("%s didn't answer", to)
		}
	}
}

func main() {
	var me card
	if err := json.Unmarshal(must(os.ReadFile("/run/netspace/environment.json")), &me); err != nil {
		log.Fatal(err)
	}
	switch words := os.Args[1:]; {
	case len(words) == 1 && words[0] == "receive":
		receive(me)
	case len(words) == 3 && words[0] == "send":
		send(me, words[1], words[2])
	case len(words) == 3 && words[0] == "request":
		request(me, words[1], words[2])
	default:
		log.Fatal("usage: mail send PEER TEXT | mail receive | mail request PEER TEXT")
	}
}
