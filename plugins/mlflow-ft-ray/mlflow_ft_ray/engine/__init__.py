"""What needs Ray, imported only when it is used."""
