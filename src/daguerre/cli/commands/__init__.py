"""One file for each subcommand, with `main(arguments)`; heavy imports stand inside the functions that need them."""
