"""What only a GPU can show. UDL_TEST_DEVICE=cuda runs it there, and cpu rehearses it."""
