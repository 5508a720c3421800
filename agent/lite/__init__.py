"""The native binding on Paddle Lite's C++ library."""
