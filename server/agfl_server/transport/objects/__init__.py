"""Objects of messages: on disk while they are on their way, and whole before anybody reads them."""
