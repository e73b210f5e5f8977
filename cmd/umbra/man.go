package main

import (
	"os"

	"github.com/spf13/cobra"
	"github.com/spf13/cobra/doc"
)

// manCommand writes manual pages; packagers call it, so help does not list it.
func manCommand() *cobra.Command {
	var markdown bool
	cmd := &cobra.Command{
		Use:     "man DIR",
		Short:   "Write manual pages into a directory",
		Example: "  umbra man /usr/local/share/man/man1",
		Hidden:  true,
		Args:    usageArgs(cobra.ExactArgs(1)),
		RunE: func(cmd *cobra.Command, args []string) error {
			root := cmd.Root()
			root.DisableAutoGenTag = true
			if err := os.MkdirAll(args[0], 0o755); err != nil {
				return err
			}
			if markdown {
				return doc.GenMarkdownTree(root, args[0])
			}
			return doc.GenManTree(root, &doc.GenManHeader{Section: "1", Source: "Umbra", Manual: "Umbra"}, args[0])
		},
	}
	cmd.Flags().BoolVar(&markdown, "markdown", false, "Markdown instead of roff")
	return cmd
}
