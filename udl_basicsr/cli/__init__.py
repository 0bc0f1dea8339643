"""The command ``udl``: one module for each of its commands, which imports what is heavy once it has work to do."""
