package main

import "github.com/spf13/cobra"

// commands lists the commands in the order help has them.
func (a *app) commands() []*cobra.Command {
	return []*cobra.Command{
		vmsCommand(a),
		psCommand(a),
		filesCommand(a),
		modulesCommand(a),
		dmesgCommand(a),
		symbolsCommand(a),
	}
}
