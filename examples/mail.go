// Send and receive along links with amqp091-go: `mail send PEER TEXT`, `mail receive`.
//
// With Debian's packages (golang-go, golang-github-rabbitmq-amqp091-go-dev):
//
//	GO111MODULE=off GOPATH=/usr/share/gocode go build mail.go
package main

import (
	"context"
	"crypto/tls"
	"crypto/x509"
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

func send(me card, to, text string) {
	known := []string{}
	for _, peer := range me.Peers {
		if known = append(known, peer.To); peer.To != to && (peer.As != to || to == "") {
			continue
		}
		where := me.Broker
		if peer.Broker != nil {
			where = *peer.Broker
		}
		connection := connect(where)
		defer connection.Close()
		channel := must(connection.Channel())
		if err := channel.Confirm(false); err != nil {
			log.Fatal(err)
		}
		context, cancel := context.WithTimeout(context.Background(), 10*time.Second)
		defer cancel()
		message := amqp.Publishing{DeliveryMode: amqp.Persistent, Body: []byte(text)}
		confirmed := must(channel.PublishWithDeferredConfirmWithContext(context, peer.Exchange, "", true, false, message))
		if !must(confirmed.WaitContext(context)) {
			log.Fatal("the mailbox takes no more")
		}
		return
	}
	log.Fatalf("no link to %s is declared; %s may send to: %s", to, me.Name, strings.Join(known, ", "))
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
	default:
		log.Fatal("usage: mail send PEER TEXT | mail receive")
	}
}
