"""Which client gets which subchannels, at what transmit power, and where the network is cut.

Pure functions on arrays.  Nothing here imports the modem, the configuration or the record, so that
a plan and its predicted latency share no code with what is later measured.
"""
