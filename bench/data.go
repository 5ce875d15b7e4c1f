package main

import "fmt"

// The data set is the same for both systems: services with four instances
// each, and besides them services with one instance, which are the ones read,
// so that an answer carries one record of the same size on both sides.
const (
	services  = 10_000
	instances = 4
	readable  = 1_000
	bodySize  = 400
)

// records is how many entries load writes: a service counts as one.
const records = services*(1+instances) + readable

const filler = "the quick brown fox jumps over the lazy dog and goes on along the river to the mill where it rests until the " +
	"evening comes and the lamps are lit one by one along the quay, and nobody asks who it was or where it has been all day"

// instanceBody is an instance's JSON of bodySize bytes; stamp makes each one differ.
func instanceBody(stamp int, ttl, deregister string) []byte {
	head := fmt.Sprintf(`{"address":"10.%d.%d.%d","port":8443,"version":"1.4.2","zone":"eu-west-1a","weight":100,"tags":["canary","http2"],`+
		`"ttl":"%s","deregister_after":"%s","metadata":{"build":"%d","note":"`, stamp>>16&255, stamp>>8&255, stamp&255, ttl, deregister, stamp)
	const tail = `"}}`
	return append(append([]byte(head), filler[:bodySize-len(head)-len(tail)]...), tail...)
}

func serviceBody(i int) []byte {
	head := fmt.Sprintf(`{"protocol":"rest","owner":"team-%d","tags":["bench"],"metadata":{"tier":"gold"},"description":"`, i%97)
	const tail = `"}`
	return append(append([]byte(head), filler[:200]...), tail...)
}
