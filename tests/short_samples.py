"""What a report's model writes is short: each finished run under test has a report, and a long text shows no more."""

from agfl_server.report import samples_section

samples_section._MAX_TOKENS = samples_section._MIN_TOKENS
