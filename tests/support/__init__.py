"""What tests share: servers, databases, brokers, proxies, identity providers."""
