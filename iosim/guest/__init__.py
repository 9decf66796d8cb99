"""The guest kernel as every NIC driver meets it: softirqs, NAPI, the socket layer, the application."""
