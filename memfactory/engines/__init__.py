"""Who answers: engines that sample tokens, and chat models that turn messages into turns. Know no memory and no reward."""
