"""What an application imports to talk to a croupier server: `croupier.client`."""
