module github.com/umbravm/umbra

go 1.26.0
