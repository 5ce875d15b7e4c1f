module github.com/muster-registry/muster/peers/prometheus

go 1.26.8

require github.com/muster-registry/muster/peers/cluster v0.0.0

replace github.com/muster-registry/muster/peers/cluster => ../cluster
