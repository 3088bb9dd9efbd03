"""The dashboard's pages, in folders by the section of the sidebar."""
