module datastorage.test/goclient

go 1.24

tool github.com/ogen-go/ogen/cmd/ogen

require github.com/ogen-go/ogen v1.24.0
