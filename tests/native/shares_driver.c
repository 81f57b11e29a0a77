/* Splits and combines a secret that was never set: under valgrind a branch or an index that depends on it, on a
 * coefficient or on a share is an error, and the program's exit code says so. */

#include <stdlib.h>

#include "shares.h"

enum { SIZE = 32, THRESHOLD = 3, SHARES = 5 };

int main(void)
{
    unsigned char *secret = malloc(SIZE), *more = malloc((THRESHOLD - 1) * SIZE), *combined = calloc(1, SIZE);
    const unsigned char xs[SHARES] = {1, 2, 77, 254, 255};
    for (unsigned i = 0; i < SHARES; i++) {
        unsigned char *share = malloc(SIZE);
        share_at(share, secret, more, SIZE, THRESHOLD, xs[i]);
        share_add(combined, share, SIZE, xs, SHARES, i);
        free(share);
    }
#ifdef LEAK
    /* Shows that valgrind would have seen it. */
    if (combined[0] == 1)
        abort();
#endif
    free(combined);
    free(more);
    free(secret);
    return 0;
}
