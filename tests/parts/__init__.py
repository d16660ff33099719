"""Real servers for the tests: Kafka, Redis or Valkey alone and as a cluster, and a TCP proxy that breaks networks."""
