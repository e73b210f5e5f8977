package main

import (
	"context"

	"github.com/spf13/cobra"
)

// commands lists the commands in the order help has them.
func (a *app) commands() []*cobra.Command {
	return []*cobra.Command{
		psCommand(a),
	}
}

func machineNames(context.Context) []string { return nil }
