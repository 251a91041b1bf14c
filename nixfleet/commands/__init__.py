"""One module per command: options in, a call into the rest of the package, words out."""
