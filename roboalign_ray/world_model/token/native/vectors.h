/* Vectors of floats, and what is computed on them. */
#include <stdint.h>

#define INLINE static inline __attribute__((always_inline))

/* The product kernel keeps TILE rows by two vectors of LANES columns in registers: half of AVX-512's or NEON's 32, all
 * of AVX2's 16. -DWIDE builds the kernel of AVX-512's shape anywhere, from pairs of narrower vectors: the same bits,
 * slower. Attention always uses vectors of eight: heads are multiples of eight wide, and a group often has eight
 * samples. Alignment 4: vectors are read from anywhere. */
#if defined __AVX512F__ || defined WIDE
enum { LANES = 16, TILE = 8 };
#else
enum { LANES = 8, TILE = 4 };
#endif
enum { PANEL = 2 * LANES, ROWS = 8, EIGHT = 8 };
typedef float wide __attribute__((vector_size(4 * LANES), aligned(4), may_alias));
typedef float eight __attribute__((vector_size(32), aligned(4), may_alias));
typedef int32_t eight_int __attribute__((vector_size(32), aligned(4), may_alias));

static int64_t up_to(int64_t size, int64_t multiple) { return (size + multiple - 1) / multiple * multiple; }
INLINE eight load(const float *at) { return *(const eight *)at; }
INLINE void store(float *at, eight values) { *(eight *)at = values; }
INLINE eight all(float value) { return (eight){0} + value; }
INLINE eight larger(eight a, eight b) {
    eight_int mask = a > b;
    return (eight)((mask & (eight_int)a) | (~mask & (eight_int)b));
}
INLINE float sum(eight v) { return ((v[0] + v[4]) + (v[2] + v[6])) + ((v[1] + v[5]) + (v[3] + v[7])); }

/* e^x, to a unit in the last place or so: x = n ln 2 + r, |r| < 0.35, Taylor polynomial in r, n added to the exponent.
 * Limited to ±87, where float32 ends. */
INLINE eight exponential(eight x) {
    const eight round = all(12582912.0f); /* 1.5 * 2^23: adding it leaves the nearest integer in the low bits */
    x = larger(x, all(-87.0f));
    x = -larger(-x, all(-87.0f));
    eight shifted = x * 1.44269504f + round, n = shifted - round;
    eight r = (x - n * 0.693359375f) + n * 2.12194440e-4f;
    eight p = r * (1.0f / 5040) + 1.0f / 720;
    p = p * r + 1.0f / 120;
    p = p * r + 1.0f / 24;
    p = p * r + 1.0f / 6;
    p = p * r + 0.5f;
    p = p * r + 1.0f;
    p = p * r + 1.0f;
    return (eight)((eight_int)p + ((eight_int)shifted << 23));
}
