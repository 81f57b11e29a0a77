#include "row_kernel.h"

#if defined(__aarch64__) && defined(__ORDER_LITTLE_ENDIAN__)

#include <arm_neon.h>
#if defined(__linux__)
#include <sys/auxv.h>
#endif

#include "frames.h"

#define TARGET __attribute__((target("+crypto")))
#define PRIMITIVE static inline TARGET __attribute__((always_inline))

typedef uint64x2_t block;

PRIMITIVE block load(const unsigned char *p) { return vreinterpretq_u64_u8(vld1q_u8(p)); }
PRIMITIVE void store(unsigned char *p, block b) { vst1q_u8(p, vreinterpretq_u8_u64(b)); }
PRIMITIVE block from_words(uint64_t low, uint64_t high) { return vcombine_u64(vcreate_u64(low), vcreate_u64(high)); }
PRIMITIVE uint64_t low_word(block b) { return vgetq_lane_u64(b, 0); }
PRIMITIVE uint64_t high_word(block b) { return vgetq_lane_u64(b, 1); }
PRIMITIVE block add(block a, block b) { return veorq_u64(a, b); }
PRIMITIVE block swap(block b) { return vextq_u64(b, b, 1); }

PRIMITIVE block reverse(block b)
{
    return swap(vreinterpretq_u64_u8(vrev64q_u8(vreinterpretq_u8_u64(b))));
}

PRIMITIVE block mul_low(block a, block b)
{
    return vreinterpretq_u64_p128(vmull_p64((poly64_t)vgetq_lane_u64(a, 0), (poly64_t)vgetq_lane_u64(b, 0)));
}

PRIMITIVE block mul_high(block a, block b)
{
    return vreinterpretq_u64_p128(vmull_high_p64(vreinterpretq_p64_u64(a), vreinterpretq_p64_u64(b)));
}

PRIMITIVE block mul_cross(block a, block b)
{
    block swapped = swap(b);
    return veorq_u64(mul_low(a, swapped), mul_high(a, swapped));
}

/* Powers of H and keystream do not stay behind in registers, which a signal or a switch may spill. */
PRIMITIVE void clear_registers(void)
{
    /* v8 to v15 are the caller's and are restored. */
    __asm__ volatile("movi v0.16b, #0\n\tmovi v1.16b, #0\n\tmovi v2.16b, #0\n\tmovi v3.16b, #0\n\t"
                     "movi v4.16b, #0\n\tmovi v5.16b, #0\n\tmovi v6.16b, #0\n\tmovi v7.16b, #0\n\t"
                     "movi v16.16b, #0\n\tmovi v17.16b, #0\n\tmovi v18.16b, #0\n\tmovi v19.16b, #0\n\t"
                     "movi v20.16b, #0\n\tmovi v21.16b, #0\n\tmovi v22.16b, #0\n\tmovi v23.16b, #0\n\t"
                     "movi v24.16b, #0\n\tmovi v25.16b, #0\n\tmovi v26.16b, #0\n\tmovi v27.16b, #0\n\t"
                     "movi v28.16b, #0\n\tmovi v29.16b, #0\n\tmovi v30.16b, #0\n\tmovi v31.16b, #0"
                     :
                     :
                     : "v0", "v1", "v2", "v3", "v4", "v5", "v6", "v7", "v16", "v17", "v18", "v19", "v20", "v21", "v22",
                       "v23", "v24", "v25", "v26", "v27", "v28", "v29", "v30", "v31");
}

#include "row_blocks.h"

static int supported(void)
{
#if defined(__linux__)
    return (getauxval(AT_HWCAP) & HWCAP_PMULL) != 0;
#else
    return 1; /* every Apple processor */
#endif
}

const row_kernel row_kernel_pmull = {
    .name = "pmull",
    .max_size = 416,
    .supported = supported,
    .init = kernel_init,
    .absorb = kernel_absorb,
    .counters = kernel_counters,
    .seal = kernel_seal,
    .open = kernel_open,
};

#endif
