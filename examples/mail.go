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
	To, Exchange string
	Broker       *broker // of a peer on another host: that host's
}

type card struct {
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

func main() {
	var me card
	if err := json.Unmarshal(must(os.ReadFile("/run/netspace/environment.json")), &me); err != nil {
		log.Fatal(err)
	}
	if os.Args[1] == "receive" {
		connection := connect(me.Broker)
		defer connection.Close()
		channel := must(connection.Channel())
		mail := make(chan amqp.Delivery)
		for _, queue := range me.Queues {
			go func(from <-chan amqp.Delivery) {
				for one := range from {
					mail <- one
				}
			}(must(channel.Consume(queue, "", false, false, false, false, nil)))
		}
		delivery, sender := <-mail, "nobody"
		for _, one := range me.Senders {
			if one.Exchange == delivery.Exchange {
				sender = one.From
			}
		}
		fmt.Printf("%s: %s\n", sender, delivery.Body)
		delivery.Ack(false)
		return
	}
	for _, peer := range me.Peers {
		if peer.To != os.Args[2] {
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
		message := amqp.Publishing{DeliveryMode: amqp.Persistent, Body: []byte(os.Args[3])}
		confirmed := must(channel.PublishWithDeferredConfirmWithContext(context, peer.Exchange, "", true, false, message))
		if !must(confirmed.WaitContext(context)) {
			log.Fatal("the mailbox takes no more")
		}
		return
	}
	log.Fatal("no link to ", os.Args[2])
}
