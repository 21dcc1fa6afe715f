"""Where in-flight slots are held: one contract, in this process or shared through Redis."""
