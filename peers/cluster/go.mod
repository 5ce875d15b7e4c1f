module github.com/muster-registry/muster/peers/cluster

go 1.26.8
