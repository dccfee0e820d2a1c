"""What needs the harness; imported only when it is used."""
