/* Shamir's sharing of a secret (FORMAT 3): byte by byte over GF(2^8), x^8 + x^4 + x^3 + x + 1, in constant time. */

#ifndef TAPESEAL_SHARES_H
#define TAPESEAL_SHARES_H

#include <stddef.h>

/* Writes the share at x, 1 to 255: for each byte of the secret the polynomial of degree threshold - 1 whose value at
   0 it is. `more` are the (threshold - 1) * size random bytes of the other coefficients. */
void share_at(unsigned char *share, const unsigned char *secret, const unsigned char *more, size_t size,
              unsigned threshold, unsigned char x);

/* Adds to `secret`, zeros before the first call, what the share at xs[which] brings of it; `xs` are the `count`
   different points of all the shares that are added. Time depends on sizes and on xs, which are public. */
void share_add(unsigned char *secret, const unsigned char *share, size_t size, const unsigned char *xs, unsigned count,
               unsigned which);

#endif
