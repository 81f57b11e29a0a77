/* The kernel over four blocks at once, and four rows: their sums are turned into the lanes of one and reduced
   together. Powers and products are those of row_blocks.h.

   AES is done here too, four blocks an instruction: libcrypto's ECB does one (3.5), at half the speed. */

#include "row_kernel.h"

#if defined(__x86_64__)

#include <immintrin.h>
#include <string.h>

#include "frames.h"

#define TARGET __attribute__((target("avx512f,avx512bw,avx512vl,vpclmulqdq,vaes,pclmul,aes")))
#define INLINE static inline TARGET __attribute__((always_inline))

enum { LANES = 4, VECTOR = LANES * BLOCK };

typedef struct {
    __m512i low, cross, high;
} products;

INLINE __m512i load(const unsigned char *p)
{
    return _mm512_loadu_si512(p);
}

INLINE __m128i load_block(const void *p)
{
    return _mm_loadu_si128((const __m128i *)p);
}

INLINE __mmask64 first_bytes(size_t size)
{
    return ~(__mmask64)0 >> (VECTOR - size);
}

INLINE __m512i reverse(__m512i v)
{
    const __m512i order = _mm512_broadcast_i32x4(_mm_set_epi8(0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15));
    return _mm512_shuffle_epi8(v, order);
}

INLINE __m512i add3(__m512i a, __m512i b, __m512i c)
{
    return _mm512_ternarylogic_epi64(a, b, c, 0x96);
}

INLINE void add_products(products *sum, __m512i a, __m512i b)
{
    sum->low = _mm512_xor_si512(sum->low, _mm512_clmulepi64_epi128(a, b, 0x00));
    sum->high = _mm512_xor_si512(sum->high, _mm512_clmulepi64_epi128(a, b, 0x11));
    sum->cross = add3(sum->cross, _mm512_clmulepi64_epi128(a, b, 0x01), _mm512_clmulepi64_epi128(a, b, 0x10));
}

INLINE __m512i reduce(products p)
{
    const __m512i poly = _mm512_set1_epi64((long long)0xc200000000000000);
    __m512i middle = add3(p.cross, _mm512_shuffle_epi32(p.low, _MM_PERM_BADC),
                          _mm512_clmulepi64_epi128(p.low, poly, 0x00));
    return add3(p.high, _mm512_shuffle_epi32(middle, _MM_PERM_BADC), _mm512_clmulepi64_epi128(middle, poly, 0x00));
}

/* Lane i of the result is the sum of the lanes of v[i]. */
INLINE __m512i sum_lanes(__m512i a, __m512i b, __m512i c, __m512i d)
{
    __m512i ab = _mm512_xor_si512(_mm512_shuffle_i64x2(a, b, 0x44), _mm512_shuffle_i64x2(a, b, 0xee));
    __m512i cd = _mm512_xor_si512(_mm512_shuffle_i64x2(c, d, 0x44), _mm512_shuffle_i64x2(c, d, 0xee));
    return _mm512_xor_si512(_mm512_shuffle_i64x2(ab, cd, 0x88), _mm512_shuffle_i64x2(ab, cd, 0xdd));
}

INLINE __m512i four_blocks(const void *a, const void *b, const void *c, const void *d)
{
    __m256i low = _mm256_inserti128_si256(_mm256_castsi128_si256(load_block(a)), load_block(b), 1);
    __m256i high = _mm256_inserti128_si256(_mm256_castsi128_si256(load_block(c)), load_block(d), 1);
    return _mm512_inserti64x4(_mm512_castsi256_si512(low), high, 1);
}

/* GHASH of a row before its block of lengths, not reduced; with `sealing`, its ciphertext is made on the way. Lanes
   past the last block hold zeros, whatever power they meet. */
INLINE products hash_row(const kernel_key *key, const row *r, __m512i start, int sealing)
{
    unsigned char *sealed = r->sealed + NONCE_SIZE;
    const unsigned char *stream = r->stream + BLOCK;
    size_t blocks = (r->size + BLOCK - 1) / BLOCK + (r->aad_size + BLOCK - 1) / BLOCK + 1;
    const unsigned char *power = key->powers + (MAX_POWER - blocks) * BLOCK;
    products sum = {_mm512_setzero_si512(), _mm512_setzero_si512(), _mm512_setzero_si512()};

    for (size_t at = 0; at < r->aad_size; at += VECTOR) {
        size_t left = r->aad_size - at < VECTOR ? r->aad_size - at : VECTOR;
        __m512i a = _mm512_maskz_loadu_epi8(first_bytes(left), r->aad + at);
        add_products(&sum, _mm512_xor_si512(reverse(a), start), load(power));
        start = _mm512_setzero_si512();
        power += (left + BLOCK - 1) / BLOCK * BLOCK;
    }
    size_t at = 0;
    for (; at + VECTOR <= r->size; at += VECTOR, power += VECTOR) {
        __m512i c;
        if (sealing) {
            c = _mm512_xor_si512(load(r->plain + at), load(stream + at));
            _mm512_storeu_si512(sealed + at, c);
        } else {
            c = load(sealed + at);
        }
        add_products(&sum, _mm512_xor_si512(reverse(c), start), load(power));
        start = _mm512_setzero_si512();
    }
    if (at < r->size) {
        __mmask64 mask = first_bytes(r->size - at);
        __m512i c;
        if (sealing) {
            c = _mm512_maskz_loadu_epi8(mask, r->plain + at);
            c = _mm512_maskz_mov_epi8(mask, _mm512_xor_si512(c, load(stream + at)));
            _mm512_mask_storeu_epi8(sealed + at, mask, c);
        } else {
            c = _mm512_maskz_loadu_epi8(mask, sealed + at);
        }
        add_products(&sum, _mm512_xor_si512(reverse(c), start), load(power));
    }
    return sum;
}

/* The tags of four rows; `rows` may name one of them twice. */
INLINE __m512i four_tags(const kernel_key *key, const row *const rows[LANES], __m512i start, int sealing)
{
    products a = hash_row(key, rows[0], start, sealing);
    products b = hash_row(key, rows[1], start, sealing);
    products c = hash_row(key, rows[2], start, sealing);
    products d = hash_row(key, rows[3], start, sealing);
    products sum = {
        sum_lanes(a.low, b.low, c.low, d.low),
        sum_lanes(a.cross, b.cross, c.cross, d.cross),
        sum_lanes(a.high, b.high, c.high, d.high),
    };
    __m512i lengths = four_blocks(rows[0]->lengths, rows[1]->lengths, rows[2]->lengths, rows[3]->lengths);
    /* A row of nothing has not taken the start state in yet. */
    __mmask8 empty = 0;
    for (unsigned i = 0; i < LANES; i++)
        empty |= (__mmask8)((rows[i]->size + rows[i]->aad_size == 0) * 3u << 2 * i);
    __m512i starts = _mm512_shuffle_i64x2(start, start, 0);
    lengths = _mm512_mask_xor_epi64(lengths, empty, lengths, starts);
    const unsigned char *h = key->powers + (MAX_POWER - 1) * BLOCK;
    add_products(&sum, lengths, _mm512_broadcast_i32x4(load_block(h)));
    __m512i masks = four_blocks(rows[0]->stream, rows[1]->stream, rows[2]->stream, rows[3]->stream);
    return _mm512_xor_si512(reverse(reduce(sum)), masks);
}

/* Rows of one size up to EVEN_SIZE are quicker with a block of each of the four in one vector. */
enum { EVEN_SIZE = 128 };

INLINE int are_even(const row *const rows[LANES])
{
    size_t size = rows[0]->size, aad_size = rows[0]->aad_size;
    size_t other = (size ^ rows[1]->size) | (size ^ rows[2]->size) | (size ^ rows[3]->size);
    other |= (aad_size ^ rows[1]->aad_size) | (aad_size ^ rows[2]->aad_size) | (aad_size ^ rows[3]->aad_size);
    return other == 0 && size <= EVEN_SIZE && aad_size <= BLOCK;
}

INLINE __m512i broadcast_power(const kernel_key *key, size_t power)
{
    return _mm512_broadcast_i32x4(load_block(key->powers + (MAX_POWER - power) * BLOCK));
}

/* What the start state and the lengths come to in the hash of a row. */
INLINE __m512i constant_part(const kernel_key *key, const row *r, __m512i starts)
{
    products sum = {_mm512_setzero_si512(), _mm512_setzero_si512(), _mm512_setzero_si512()};
    add_products(&sum, _mm512_broadcast_i32x4(load_block(r->lengths)), broadcast_power(key, 1));
    add_products(&sum, starts, broadcast_power(key, (r->size + BLOCK - 1) / BLOCK + 1));
    return reduce(sum);
}

INLINE __m512i ciphertext(const row *r, size_t at, __mmask64 mask, int sealing)
{
    unsigned char *sealed = r->sealed + NONCE_SIZE + at;
    if (!sealing)
        return reverse(_mm512_maskz_loadu_epi8(mask, sealed));
    __m512i c = _mm512_xor_si512(_mm512_maskz_loadu_epi8(mask, r->plain + at), load(r->stream + BLOCK + at));
    c = _mm512_maskz_mov_epi8(mask, c);
    /* The tag comes over what is written past the ciphertext. */
    if (at + VECTOR <= r->size + TAG_SIZE)
        _mm512_storeu_si512(sealed, c);
    else
        _mm512_mask_storeu_epi8(sealed, mask, c);
    return reverse(c);
}

/* The tags of four rows of one size; `rows` may name one of them twice. */
INLINE __m512i even_tags(const kernel_key *key, const row *const rows[LANES], __m512i constant, int sealing)
{
    size_t size = rows[0]->size, aad_size = rows[0]->aad_size;
    size_t power = (size + BLOCK - 1) / BLOCK + 1;
    products sum = {_mm512_setzero_si512(), _mm512_setzero_si512(), _mm512_setzero_si512()};
    if (aad_size > 0) {
        __mmask16 mask = (__mmask16)(0xffff >> (BLOCK - aad_size));
        __m512i a = _mm512_castsi128_si512(_mm_maskz_loadu_epi8(mask, rows[0]->aad));
        a = _mm512_inserti32x4(a, _mm_maskz_loadu_epi8(mask, rows[1]->aad), 1);
        a = _mm512_inserti32x4(a, _mm_maskz_loadu_epi8(mask, rows[2]->aad), 2);
        a = _mm512_inserti32x4(a, _mm_maskz_loadu_epi8(mask, rows[3]->aad), 3);
        add_products(&sum, reverse(a), broadcast_power(key, power + 1));
    }
    for (size_t at = 0; at < size; at += VECTOR) {
        size_t left = size - at;
        __mmask64 mask = first_bytes(left < VECTOR ? left : VECTOR);
        __m512i a = ciphertext(rows[0], at, mask, sealing), b = ciphertext(rows[1], at, mask, sealing);
        __m512i c = ciphertext(rows[2], at, mask, sealing), d = ciphertext(rows[3], at, mask, sealing);
        __m512i ab = _mm512_shuffle_i64x2(a, b, 0x44), cd = _mm512_shuffle_i64x2(c, d, 0x44);
        add_products(&sum, _mm512_shuffle_i64x2(ab, cd, 0x88), broadcast_power(key, power--));
        if (left > BLOCK)
            add_products(&sum, _mm512_shuffle_i64x2(ab, cd, 0xdd), broadcast_power(key, power--));
        ab = _mm512_shuffle_i64x2(a, b, 0xee), cd = _mm512_shuffle_i64x2(c, d, 0xee);
        if (left > 2 * BLOCK)
            add_products(&sum, _mm512_shuffle_i64x2(ab, cd, 0x88), broadcast_power(key, power--));
        if (left > 3 * BLOCK)
            add_products(&sum, _mm512_shuffle_i64x2(ab, cd, 0xdd), broadcast_power(key, power--));
    }
    __m512i masks = four_blocks(rows[0]->stream, rows[1]->stream, rows[2]->stream, rows[3]->stream);
    return _mm512_xor_si512(reverse(_mm512_xor_si512(reduce(sum), constant)), masks);
}

INLINE void store_tag(const row *r, __m128i tag)
{
    _mm_storeu_si128((__m128i *)(void *)(r->sealed + NONCE_SIZE + r->size), tag);
}

INLINE __m512i start_vector(const unsigned char start[BLOCK])
{
    return _mm512_zextsi128_si512(load_block(start));
}

TARGET static void seal(const kernel_key *key, const row *rows, size_t count, const unsigned char start[BLOCK])
{
    __m512i begin = start_vector(start), starts = _mm512_broadcast_i32x4(load_block(start));
    __m512i constant = starts;
    uint64_t known[2] = {UINT64_MAX, 0};
    for (size_t i = 0; i < count; i += LANES, rows += LANES) {
        size_t left = count - i;
        /* Sealing a row again writes the same bytes again. */
        const row *four[LANES] = {rows, rows + (left > 1), left > 2 ? rows + 2 : rows, left > 3 ? rows + 3 : rows};
        __m512i tags;
        if (are_even(four)) {
            if (four[0]->lengths[0] != known[0] || four[0]->lengths[1] != known[1]) {
                memcpy(known, four[0]->lengths, sizeof known);
                constant = constant_part(key, four[0], starts);
            }
            tags = even_tags(key, four, constant, 1);
        } else {
            tags = four_tags(key, four, begin, 1);
        }
        store_tag(four[0], _mm512_castsi512_si128(tags));
        store_tag(four[1], _mm512_extracti32x4_epi32(tags, 1));
        store_tag(four[2], _mm512_extracti32x4_epi32(tags, 2));
        store_tag(four[3], _mm512_extracti32x4_epi32(tags, 3));
    }
}

INLINE void decrypt_row(const row *r)
{
    const unsigned char *sealed = r->sealed + NONCE_SIZE;
    const unsigned char *stream = r->stream + BLOCK;
    size_t at = 0;
    for (; at + VECTOR <= r->size; at += VECTOR)
        _mm512_storeu_si512(r->plain + at, _mm512_xor_si512(load(sealed + at), load(stream + at)));
    if (at < r->size) {
        __mmask64 mask = first_bytes(r->size - at);
        __m512i c = _mm512_maskz_loadu_epi8(mask, sealed + at);
        _mm512_mask_storeu_epi8(r->plain + at, mask, _mm512_xor_si512(c, load(stream + at)));
    }
}

TARGET static void open(const kernel_key *key, row *rows, size_t count, const unsigned char start[BLOCK])
{
    __m512i begin = start_vector(start), starts = _mm512_broadcast_i32x4(load_block(start));
    __m512i constant = starts;
    uint64_t known[2] = {UINT64_MAX, 0};
    for (size_t i = 0; i < count; i += LANES, rows += LANES) {
        size_t left = count - i, lanes = left < LANES ? left : LANES;
        const row *four[LANES] = {rows, rows + (left > 1), left > 2 ? rows + 2 : rows, left > 3 ? rows + 3 : rows};
        __m512i tags;
        if (are_even(four)) {
            if (four[0]->lengths[0] != known[0] || four[0]->lengths[1] != known[1]) {
                memcpy(known, four[0]->lengths, sizeof known);
                constant = constant_part(key, four[0], starts);
            }
            tags = even_tags(key, four, constant, 0);
        } else {
            tags = four_tags(key, four, begin, 0);
        }
        __m512i have = four_blocks(four[0]->sealed + NONCE_SIZE + four[0]->size,
                                   four[1]->sealed + NONCE_SIZE + four[1]->size,
                                   four[2]->sealed + NONCE_SIZE + four[2]->size,
                                   four[3]->sealed + NONCE_SIZE + four[3]->size);
        unsigned wrong = _mm512_cmpneq_epi64_mask(tags, have);
        for (size_t lane = 0; lane < lanes; lane++) {
            rows[lane].valid = (wrong >> 2 * lane & 3) == 0;
            if (rows[lane].valid)
                decrypt_row(&rows[lane]);
        }
    }
}

TARGET static void counters(const row *rows, size_t count)
{
    /* The last word of a block is its number, big-endian; there are fewer than 256. */
    const __m512i first = _mm512_set_epi32(4 << 24, 0, 0, 0, 3 << 24, 0, 0, 0, 2 << 24, 0, 0, 0, 1 << 24, 0, 0, 0);
    const __m512i step = _mm512_broadcast_i32x4(_mm_set_epi32(LANES << 24, 0, 0, 0));
    const __m128i nonce = _mm_set_epi32(0, -1, -1, -1);
    for (size_t r = 0; r < count; r++) {
        __m512i base = _mm512_broadcast_i32x4(_mm_and_si128(load_block(rows[r].sealed), nonce));
        unsigned char *stream = rows[r].stream, *end = stream + BLOCK + rows[r].size;
        /* What is written past this row's blocks is the next row's, or padding. */
        __m512i number = first;
        for (; stream + BLOCK < end; stream += VECTOR, number = _mm512_add_epi32(number, step))
            _mm512_storeu_si512(stream, _mm512_or_si512(base, number));
        if (stream < end)
            _mm_storeu_si128((__m128i *)(void *)stream, _mm512_castsi512_si128(_mm512_or_si512(base, number)));
    }
}

/* A new round key from the one two before and the last one, which went through the S-box; `word` of that one counts. */
#define NEXT_ROUND_KEY(before, last, rcon, word)                                                                       \
    add_shifted(before, _mm_shuffle_epi32(_mm_aeskeygenassist_si128(last, rcon), (word) * 0x55))

INLINE __m128i add_shifted(__m128i v, __m128i word)
{
    v = _mm_xor_si128(v, _mm_slli_si128(v, 4));
    v = _mm_xor_si128(v, _mm_slli_si128(v, 8));
    return _mm_xor_si128(v, word);
}

TARGET static void init(kernel_key *key, const unsigned char secret[KEY_SIZE], const unsigned char h[BLOCK])
{
    row_kernel_pclmul.init(key, secret, h);
    __m128i *keys = (__m128i *)(void *)key->round_keys;
    keys[0] = load_block(secret);
    keys[1] = load_block(secret + BLOCK);
    keys[2] = NEXT_ROUND_KEY(keys[0], keys[1], 0x01, 3);
    keys[3] = NEXT_ROUND_KEY(keys[1], keys[2], 0, 2);
    keys[4] = NEXT_ROUND_KEY(keys[2], keys[3], 0x02, 3);
    keys[5] = NEXT_ROUND_KEY(keys[3], keys[4], 0, 2);
    keys[6] = NEXT_ROUND_KEY(keys[4], keys[5], 0x04, 3);
    keys[7] = NEXT_ROUND_KEY(keys[5], keys[6], 0, 2);
    keys[8] = NEXT_ROUND_KEY(keys[6], keys[7], 0x08, 3);
    keys[9] = NEXT_ROUND_KEY(keys[7], keys[8], 0, 2);
    keys[10] = NEXT_ROUND_KEY(keys[8], keys[9], 0x10, 3);
    keys[11] = NEXT_ROUND_KEY(keys[9], keys[10], 0, 2);
    keys[12] = NEXT_ROUND_KEY(keys[10], keys[11], 0x20, 3);
    keys[13] = NEXT_ROUND_KEY(keys[11], keys[12], 0, 2);
    keys[14] = NEXT_ROUND_KEY(keys[12], keys[13], 0x40, 3);
}

INLINE __m512i load_round_key(const unsigned char *p)
{
    return _mm512_broadcast_i32x4(load_block(p));
}

/* `count` is a constant: vectors enough to keep the units busy, few enough for the registers. */
INLINE void encrypt_vectors(const kernel_key *key, unsigned char *blocks, const unsigned count)
{
    /* Else the compiler would load all round keys once, and spill some to the stack. */
    __asm__ volatile("" : : : "memory");
    const unsigned char *round_key = key->round_keys;
    __m512i v[8];
    #pragma GCC unroll 8
    for (unsigned j = 0; j < count; j++)
        v[j] = _mm512_xor_si512(load(blocks + j * VECTOR), load_round_key(round_key));
    #pragma GCC unroll 16
    for (unsigned i = 1; i < ROUND_KEYS - 1; i++) {
        __m512i next = load_round_key(round_key + i * BLOCK);
        #pragma GCC unroll 8
        for (unsigned j = 0; j < count; j++)
            v[j] = _mm512_aesenc_epi128(v[j], next);
    }
    __m512i last = load_round_key(round_key + (ROUND_KEYS - 1) * BLOCK);
    #pragma GCC unroll 8
    for (unsigned j = 0; j < count; j++)
        _mm512_storeu_si512(blocks + j * VECTOR, _mm512_aesenclast_epi128(v[j], last));
}

/* What is encrypted past `size` is padding. */
TARGET static void encrypt(const kernel_key *key, unsigned char *blocks, size_t size)
{
    size_t at = 0;
    for (; at + 4 * VECTOR < size; at += 8 * VECTOR)
        encrypt_vectors(key, blocks + at, 8);
    if (at < size)
        encrypt_vectors(key, blocks + at, 4);
}

static void absorb(const kernel_key *key, const unsigned char *aad, size_t size, unsigned char start[BLOCK])
{
    row_kernel_pclmul.absorb(key, aad, size, start);
}

/* These also say whether the system saves the registers (XGETBV). */
static int supported(void)
{
    return row_kernel_pclmul.supported() && __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") &&
           __builtin_cpu_supports("avx512vl") && __builtin_cpu_supports("vpclmulqdq") && __builtin_cpu_supports("vaes") &&
           __builtin_cpu_supports("aes");
}

const row_kernel row_kernel_vpclmul = {
    .name = "vpclmul",
    .max_size = 1504,
    .supported = supported,
    .init = init,
    .absorb = absorb,
    .counters = counters,
    .encrypt = encrypt,
    .seal = seal,
    .open = open,
};

#endif
