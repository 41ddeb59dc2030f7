"""Redis or Valkey, as the servers use it: where it is, the connection, scripts. Knows none of the servers."""
