/* Runs one kernel of rows over cases that a test has written: no libcrypto, so that it runs on any processor an
 * emulator knows, and every buffer its own allocation, so that valgrind sees each byte outside.
 *
 * Each case: u32 size, u32 associated data size, u32 shared (1: one for all rows), u32 rows, key, H, keystream of each row
 * (the block that masks the tag first), plaintext of each, associated data (of each, or the one), sealed rows.
 */

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "frames.h"
#include "row_kernel.h"

static unsigned char *take(FILE *file, size_t size)
{
    unsigned char *p = malloc(size + (size == 0));
    if (p == NULL || fread(p, 1, size, file) != size)
        exit(3);
    return p;
}

/* How many rows of the case went wrong. */
static int run(const row_kernel *kernel, FILE *file, const uint32_t head[4])
{
    size_t size = head[0], aad_size = head[1], count = head[3], blocks = (size + 15) / 16 + 1;
    int shared = head[2] != 0, bad = 0;
    kernel_key *key = aligned_alloc(64, (sizeof *key + 63) / 64 * 64);
    unsigned char *secret = take(file, KEY_SIZE), *h = take(file, BLOCK), *keystream = take(file, count * blocks * BLOCK);
    unsigned char *plain = take(file, count * size), *aad = take(file, shared ? aad_size : count * aad_size);
    unsigned char *want = take(file, count * (size + 28)), *sealed = calloc(1, count * (size + 28));
    unsigned char *opened = calloc(1, count * size + 1), start[BLOCK] = {0};
    unsigned char *stream = malloc(count * blocks * BLOCK + STREAM_PADDING);
    row *rows = calloc(count, sizeof *rows);
    memset(stream, 0, count * blocks * BLOCK + STREAM_PADDING);
    kernel->init(key, secret, h);
    if (shared)
        kernel->absorb(key, aad, aad_size, start);
    for (size_t r = 0; r < count; r++) {
        rows[r].plain = plain + r * size;
        rows[r].sealed = sealed + r * (size + 28);
        rows[r].aad = shared ? NULL : aad + r * aad_size;
        rows[r].stream = stream + r * blocks * BLOCK;
        rows[r].size = size;
        rows[r].aad_size = shared ? 0 : aad_size;
        rows[r].lengths[0] = size * 8;
        rows[r].lengths[1] = aad_size * 8;
        memcpy(rows[r].sealed, want + r * (size + 28), NONCE_SIZE);
    }
    kernel->counters(rows, count);
    for (size_t r = 0; r < count; r++)
        for (size_t b = 0; b < blocks; b++) {
            unsigned char block[BLOCK] = {0};
            memcpy(block, rows[r].sealed, NONCE_SIZE);
            block[15] = (unsigned char)(b + 1);
            bad += memcmp(block, rows[r].stream + b * BLOCK, BLOCK) != 0;
        }
    if (kernel->encrypt != NULL) {
        kernel->encrypt(key, stream, count * blocks * BLOCK);
        bad += memcmp(stream, keystream, count * blocks * BLOCK) != 0;
    }
    memcpy(stream, keystream, count * blocks * BLOCK);
    kernel->seal(key, rows, count, start);
    bad += memcmp(sealed, want, count * (size + 28)) != 0;
    for (size_t r = 0; r < count; r++)
        rows[r].plain = opened + r * size;
    /* One bit of the middle row is wrong: it stays unopened, the others come out. */
    size_t wrong = count / 2, bit = size * 8 % ((size + TAG_SIZE) * 8);
    rows[wrong].sealed[NONCE_SIZE + bit / 8] ^= (unsigned char)(1 << bit % 8);
    kernel->open(key, rows, count, start);
    for (size_t r = 0; r < count; r++) {
        bad += rows[r].valid != (r != wrong);
        for (size_t i = 0; i < size; i++)
            bad += opened[r * size + i] != (r == wrong ? 0 : plain[r * size + i]);
    }
    free(key), free(secret), free(h), free(keystream), free(plain), free(aad), free(want), free(sealed), free(opened), free(stream);
    free(rows);
    return bad;
}

int main(int argc, char **argv)
{
    const row_kernel *kernels[] = {
#if defined(__x86_64__)
        &row_kernel_pclmul, &row_kernel_vpclmul,
#elif defined(__aarch64__)
        &row_kernel_pmull,
#endif
        NULL,
    };
    const row_kernel **kernel = kernels;
    while (argc == 3 && *kernel != NULL && strcmp((*kernel)->name, argv[1]) != 0)
        kernel++;
    FILE *file = argc == 3 ? fopen(argv[2], "rb") : NULL;
    if (*kernel == NULL || file == NULL || !(*kernel)->supported())
        return 2;
    uint32_t head[4];
    int cases = 0, bad = 0;
    while (fread(head, sizeof head, 1, file) == 1) {
        int found = run(*kernel, file, head);
        if (found > 0)
            printf("size %u, associated data %u, shared %u, rows %u: %d wrong\n", head[0], head[1], head[2], head[3], found);
        bad += found;
        cases++;
    }
    printf("%d cases, %d wrong\n", cases, bad);
    fclose(file);
    return bad > 0;
}
