module datastorage.test/go_verifier

go 1.23
