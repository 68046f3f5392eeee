"""One file for each subcommand, with `main(arguments)`; heavy imports are inside the functions that need them."""
