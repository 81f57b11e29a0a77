/* The kernel over single blocks of 128 bits, for a file that has defined its instructions:
 *
 *   TARGET          attribute under which the intrinsics compile
 *   block           the vector type
 *   load, store     16 bytes at any address
 *   from_words      two 64-bit words, the low one first;  low_word, high_word: back
 *   add             exclusive or
 *   reverse         the order of the bytes
 *   swap            the two words
 *   mul_low, mul_high   carry-less product of the low words, of the high words
 *   mul_cross       low by high, exclusive-or high by low
 *
 * A product of 256 bits is held as low + cross * x^64 + high * x^128, sums of products too: a row is reduced once.
 * Powers of H are stored times x modulo GHASH's polynomial, which undoes the reflection of bits (Gueron and Kounavis,
 * "Carry-less multiplication and its usage for computing the GCM mode", 2010).
 */

#include <string.h>

#define INLINE static inline TARGET __attribute__((always_inline))

typedef struct {
    block low, cross, high;
} product;

INLINE block zero_block(void)
{
    return from_words(0, 0);
}

INLINE void add_product(product *sum, block a, block b)
{
    sum->low = add(sum->low, mul_low(a, b));
    sum->high = add(sum->high, mul_high(a, b));
    sum->cross = add(sum->cross, mul_cross(a, b));
}

INLINE block reduce(product p)
{
    const block poly = from_words(0xc200000000000000, 0);
    p.cross = add(add(p.cross, swap(p.low)), mul_low(p.low, poly));
    return add(add(p.high, swap(p.cross)), mul_low(p.cross, poly));
}

INLINE uint64_t load64(const unsigned char *p)
{
    uint64_t v;
    memcpy(&v, p, 8);
    return v;
}

INLINE uint64_t load32(const unsigned char *p)
{
    uint32_t v;
    memcpy(&v, p, 4);
    return v;
}

/* 1 to 15 bytes, zeros behind them. Reads nothing else. */
INLINE block load_part(const unsigned char *p, size_t size)
{
    if (size >= 8)
        return from_words(load64(p), load64(p + size - 8) >> 8 * (15 - size) >> 8);
    if (size >= 4)
        return from_words(load32(p) | load32(p + size - 4) << 8 * (size - 4), 0);
    return from_words((uint64_t)p[0] | (uint64_t)p[size / 2] << 8 * (size / 2) | (uint64_t)p[size - 1] << 8 * (size - 1),
                      0);
}

/* The first 1 to 15 bytes. Writes nothing else. */
INLINE void store_part(unsigned char *p, block b, size_t size)
{
    uint64_t low = low_word(b), high = high_word(b);
    if (size >= 8) {
        memcpy(p, &low, 8);
        p += 8;
        size -= 8;
        low = high;
    }
    if (size & 4) {
        memcpy(p, &low, 4);
        p += 4;
        low >>= 32;
    }
    if (size & 2) {
        memcpy(p, &low, 2);
        p += 2;
        low >>= 16;
    }
    if (size & 1)
        *p = (unsigned char)low;
}

/* The first bytes of a block, zeros instead of the others. */
INLINE block keep(block b, size_t size)
{
    uint64_t all = ~(uint64_t)0;
    uint64_t low = size >= 8 ? all : ((uint64_t)1 << 8 * size) - 1;
    uint64_t high = size > 8 ? all >> 8 * (16 - size) : 0;
    return from_words(low_word(b) & low, high_word(b) & high);
}

TARGET static void kernel_init(kernel_key *key, const unsigned char secret[KEY_SIZE], const unsigned char h[BLOCK])
{
    (void)secret;
    memset(key, 0, sizeof *key);
    block power = reverse(load(h)), first = zero_block();
    for (unsigned i = 1; i <= MAX_POWER; i++) {
        uint64_t low = low_word(power), high = high_word(power);
        uint64_t carry = 0 - (high >> 63);
        block stored = from_words(low << 1 ^ (carry & 1), (high << 1 | low >> 63) ^ (carry & 0xc200000000000000));
        store(key->powers + (MAX_POWER - i) * BLOCK, stored);
        if (i == 1)
            first = stored;
        product p = {zero_block(), zero_block(), zero_block()};
        add_product(&p, power, first);
        power = reduce(p);
    }
}

TARGET static void kernel_absorb(const kernel_key *key, const unsigned char *aad, size_t size,
                                 unsigned char start[BLOCK])
{
    block state = zero_block();
    block h = load(key->powers + (MAX_POWER - 1) * BLOCK);
    while (size > 0) {
        size_t n = size < BLOCK ? size : BLOCK;
        product p = {zero_block(), zero_block(), zero_block()};
        add_product(&p, add(state, reverse(n == BLOCK ? load(aad) : load_part(aad, n))), h);
        state = reduce(p);
        aad += n;
        size -= n;
    }
    store(start, state);
}

TARGET static void kernel_counters(const row *rows, size_t count)
{
    for (size_t r = 0; r < count; r++) {
        uint64_t low = load64(rows[r].sealed), high = load32(rows[r].sealed + 8);
        size_t blocks = (rows[r].size + BLOCK - 1) / BLOCK + 1;
        /* The last word of a block is its number, big-endian; there are fewer than 256. */
        for (size_t i = 0; i < blocks; i++)
            store(rows[r].stream + i * BLOCK, from_words(low, high | (uint64_t)(i + 1) << 56));
    }
}

/* The tag of a row; with `sealing`, its ciphertext is made and hashed on the way. */
INLINE block row_tag(const kernel_key *key, const row *r, block start, int sealing)
{
    unsigned char *sealed = r->sealed + NONCE_SIZE;
    const unsigned char *stream = r->stream + BLOCK;
    size_t blocks = (r->size + BLOCK - 1) / BLOCK + (r->aad_size + BLOCK - 1) / BLOCK + 1;
    const unsigned char *power = key->powers + (MAX_POWER - blocks) * BLOCK;
    product sum = {zero_block(), zero_block(), zero_block()};

    for (size_t at = 0; at < r->aad_size; at += BLOCK, power += BLOCK) {
        size_t left = r->aad_size - at;
        block a = left >= BLOCK ? load(r->aad + at) : load_part(r->aad + at, left);
        add_product(&sum, add(reverse(a), start), load(power));
        start = zero_block();
    }
    size_t at = 0;
    for (; at + BLOCK <= r->size; at += BLOCK, power += BLOCK) {
        block c;
        if (sealing) {
            c = add(load(r->plain + at), load(stream + at));
            store(sealed + at, c);
        } else {
            c = load(sealed + at);
        }
        add_product(&sum, add(reverse(c), start), load(power));
        start = zero_block();
    }
    if (at < r->size) {
        size_t left = r->size - at;
        block c;
        if (sealing) {
            c = keep(add(load_part(r->plain + at, left), load(stream + at)), left);
            store_part(sealed + at, c, left);
        } else {
            c = load_part(sealed + at, left);
        }
        add_product(&sum, add(reverse(c), start), load(power));
        start = zero_block();
        power += BLOCK;
    }
    add_product(&sum, add(from_words(r->lengths[0], r->lengths[1]), start), load(power));
    return add(reverse(reduce(sum)), load(r->stream));
}

TARGET static void kernel_seal(const kernel_key *key, const row *rows, size_t count, const unsigned char start[BLOCK])
{
    block begin = load(start);
    for (size_t i = 0; i < count; i++)
        store(rows[i].sealed + NONCE_SIZE + rows[i].size, row_tag(key, &rows[i], begin, 1));
}

TARGET static void kernel_open(const kernel_key *key, row *rows, size_t count, const unsigned char start[BLOCK])
{
    block begin = load(start);
    for (size_t i = 0; i < count; i++) {
        row *r = &rows[i];
        const unsigned char *sealed = r->sealed + NONCE_SIZE;
        block difference = add(row_tag(key, r, begin, 0), load(sealed + r->size));
        r->valid = (low_word(difference) | high_word(difference)) == 0;
        if (!r->valid)
            continue;
        const unsigned char *stream = r->stream + BLOCK;
        size_t at = 0;
        for (; at + BLOCK <= r->size; at += BLOCK)
            store(r->plain + at, add(load(sealed + at), load(stream + at)));
        if (at < r->size)
            store_part(r->plain + at, add(load_part(sealed + at, r->size - at), load(stream + at)), r->size - at);
    }
}
