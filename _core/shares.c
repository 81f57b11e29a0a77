#include "shares.h"

/* The product, by masks: no branch and no index depends on a or b. */
static unsigned multiply(unsigned a, unsigned b)
{
    unsigned product = 0;
    for (int bit = 0; bit < 8; bit++) {
        product ^= a & (0u - ((b >> bit) & 1u));
        a = (a << 1) ^ (0x11bu & (0u - (a >> 7)));
    }
    return product;
}

/* a^254, which is 1 / a. */
static unsigned invert(unsigned a)
{
    unsigned inverse = 1;
    for (int bit = 7; bit >= 0; bit--) {
        inverse = multiply(inverse, inverse);
        if ((254 >> bit) & 1)
            inverse = multiply(inverse, a);
    }
    return inverse;
}

/* Secrets are read and written through volatile, a byte at a time: a loop over vectors would leave them in registers
   that nothing clears and that a signal spills. */

void share_at(unsigned char *share, const unsigned char *secret, const unsigned char *more, size_t size,
              unsigned threshold, unsigned char x)
{
    volatile unsigned char *out = share;
    const volatile unsigned char *constant = secret;
    const volatile unsigned char *others = more;
    for (size_t i = 0; i < size; i++) {
        unsigned value = 0;
        for (unsigned k = threshold - 1; k > 0; k--)
            value = multiply(value ^ others[(k - 1) * size + i], x);
        out[i] = (unsigned char)(value ^ constant[i]);
    }
}

void share_add(unsigned char *secret, const unsigned char *share, size_t size, const unsigned char *xs, unsigned count,
               unsigned which)
{
    /* Lagrange at 0: the product of x / (x - mine) over the other points; here minus is plus, and both are XOR. */
    unsigned above = 1;
    unsigned below = 1;
    for (unsigned k = 0; k < count; k++) {
        if (k != which) {
            above = multiply(above, xs[k]);
            below = multiply(below, (unsigned)(xs[k] ^ xs[which]));
        }
    }
    unsigned weight = multiply(above, invert(below));
    volatile unsigned char *sum = secret;
    const volatile unsigned char *mine = share;
    for (size_t i = 0; i < size; i++)
        sum[i] = (unsigned char)(sum[i] ^ multiply(mine[i], weight));
}
