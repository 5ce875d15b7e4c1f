module github.com/muster-registry/muster/peers/spire

go 1.26.8
