package main

import "github.com/spf13/cobra"

// commands lists the commands in the order help has them.
func (a *app) commands() []*cobra.Command {
	return []*cobra.Command{
		vmsCommand(a),
		infoCommand(a),
		psCommand(a),
		socketsCommand(a),
		filesCommand(a),
		mapsCommand(a),
		mountsCommand(a),
		modulesCommand(a),
		netdevsCommand(a),
		dmesgCommand(a),
		envCommand(a),
		namespacesCommand(a),
		cgroupsCommand(a),
		symbolsCommand(a),
		typeCommand(a),
		printCommand(a),
		readCommand(a),
		dumpCommand(a),
		recordCommand(a),
	}
}
