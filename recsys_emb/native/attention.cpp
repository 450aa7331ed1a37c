// Self-attention between the fields of a row, forward and backward: see attention.py.
//
// One row and head at a time, so that all but what goes in and out stays in the first-level cache. The scores are kept
// by [key, query]: a lane is a query, and softmax crosses no lanes. Rows are shared among threads and nothing is summed
// over rows, so any number of threads gives the same bits.
#include <cstdint>
#include <vector>

namespace {

typedef float vec __attribute__((vector_size(32), aligned(4), may_alias));
typedef int ivec __attribute__((vector_size(32)));
constexpr long LANES = 8;

inline vec load(const float* p) { return *reinterpret_cast<const vec*>(p); }
inline void store(float* p, vec v) { *reinterpret_cast<vec*>(p) = v; }
inline vec all(float x) { return vec{x, x, x, x, x, x, x, x}; }

// C[M, 8 N] = A B, where A[m, k] = a[m * a_row + k * a_col]; sums stay in registers.
template <int M, int N>
inline void tile(long K, const float* a, long a_row, long a_col, const float* b, long b_row, float* c, long c_row) {
    vec sum[M][N] = {};
    for (long k = 0; k < K; ++k) {
        vec row[N];
#pragma GCC unroll 8
        for (int n = 0; n < N; ++n) row[n] = load(b + k * b_row + n * LANES);
#pragma GCC unroll 8
        for (int m = 0; m < M; ++m) {
            vec x = all(a[m * a_row + k * a_col]);
#pragma GCC unroll 8
            for (int n = 0; n < N; ++n) sum[m][n] += x * row[n];
        }
    }
#pragma GCC unroll 8
    for (int m = 0; m < M; ++m)
#pragma GCC unroll 8
        for (int n = 0; n < N; ++n) store(c + m * c_row + n * LANES, sum[m][n]);
}

template <int M, int N>
void rows(long m, long K, const float* a, long a_row, long a_col, const float* b, long b_row, float* c, long c_row) {
    for (; m >= M; m -= M, a += M * a_row, c += M * c_row) tile<M, N>(K, a, a_row, a_col, b, b_row, c, c_row);
    for (; m > 0; --m, a += a_row, c += c_row) tile<1, N>(K, a, a_row, a_col, b, b_row, c, c_row);
}

// n: a multiple of 8. M * N sums, N values of b and one of a: at most 16 registers.
void product(long m, long n, long K, const float* a, long a_row, long a_col, const float* b, long b_row, float* c,
             long c_row) {
    while (n > 0) {
        long vecs = n / LANES, now = vecs <= 4 ? vecs : vecs < 7 ? 3 : 4;
        switch (now) {
            case 1: rows<8, 1>(m, K, a, a_row, a_col, b, b_row, c, c_row); break;
            case 2: rows<6, 2>(m, K, a, a_row, a_col, b, b_row, c, c_row); break;
            case 3: rows<4, 3>(m, K, a, a_row, a_col, b, b_row, c, c_row); break;
            default: rows<3, 4>(m, K, a, a_row, a_col, b, b_row, c, c_row);
        }
        b += now * LANES, c += now * LANES, n -= now * LANES;
    }
}

// Cephes' expf: 2^n times a polynomial of what is left, for x <= 0.
inline vec exponential(vec x) {
    const vec low = all(-87.0f), shift = all(12582912.0f);  // 1.5 * 2^23: the sum's last bits are the integer
    x = x < low ? low : x;                                  // so that NaN stays NaN
    vec t = x * all(1.44269504f) + shift;
    vec n = t - shift;
    vec r = x - n * all(0.693359375f) + n * all(2.12194440e-4f);
    vec p = all(1.9875691500e-4f);
    p = p * r + all(1.3981999507e-3f);
    p = p * r + all(8.3334519073e-3f);
    p = p * r + all(4.1665795894e-2f);
    p = p * r + all(1.6666665459e-1f);
    p = p * r + all(5.0000001201e-1f);
    p = p * r * r + r + all(1.0f);
    ivec power = ((ivec)t + (127 - 0x4b400000)) << 23;  // of the bits
    return p * (vec)power;
}

// Zeros, aligned to a cache line. What stands behind the fields is computed with, so it must be harmless.
class Buffer {
  public:
    explicit Buffer(long n) : values(n + 16, 0.0f) {}
    float* data() { return reinterpret_cast<float*>((reinterpret_cast<std::uintptr_t>(values.data()) + 63) & ~63ull); }

  private:
    std::vector<float> values;
};

struct Shape {
    long fields, heads, dim;
    long padded() const { return (fields + LANES - 1) / LANES * LANES; }
    long width() const { return heads * dim; }
};

// 8 rows of 8 at this stride -> 8 columns
inline void transpose_block(const float* x, long stride, float* out, long out_stride) {
    const ivec low{0, 8, 1, 9, 4, 12, 5, 13}, high = low + 2, pairs{0, 1, 8, 9, 4, 5, 12, 13}, others = pairs + 2;
    const ivec halves{0, 1, 2, 3, 8, 9, 10, 11}, ends = halves + 4;
    vec a[8], b[8];
#pragma GCC unroll 8
    for (int i = 0; i < 8; ++i) a[i] = load(x + i * stride);
#pragma GCC unroll 4
    for (int i = 0; i < 8; i += 2) {
        b[i] = __builtin_shuffle(a[i], a[i + 1], low);
        b[i + 1] = __builtin_shuffle(a[i], a[i + 1], high);
    }
#pragma GCC unroll 4
    for (int i = 0; i < 8; i += 4) {
        a[i] = __builtin_shuffle(b[i], b[i + 2], pairs);
        a[i + 1] = __builtin_shuffle(b[i], b[i + 2], others);
        a[i + 2] = __builtin_shuffle(b[i + 1], b[i + 3], pairs);
        a[i + 3] = __builtin_shuffle(b[i + 1], b[i + 3], others);
    }
#pragma GCC unroll 4
    for (int i = 0; i < 4; ++i) {
        store(out + i * out_stride, __builtin_shuffle(a[i], a[i + 4], halves));
        store(out + (i + 4) * out_stride, __builtin_shuffle(a[i], a[i + 4], ends));
    }
}

// [fields, dim] at this stride -> [dim, padded]; what is behind the fields stays
void transpose(const Shape& s, const float* x, long stride, float* out) {
    long padded = s.padded(), whole = s.fields / LANES * LANES;
    for (long d = 0; d < s.dim; d += LANES) {
        for (long f = 0; f < whole; f += LANES) transpose_block(x + f * stride + d, stride, out + d * padded + f, padded);
        for (long f = whole; f < s.fields; ++f)
            for (long l = 0; l < LANES; ++l) out[(d + l) * padded + f] = x[f * stride + d + l];
    }
}

// Over the first index of scores[fields, padded]: a lane is a query, so that nothing crosses lanes.
void softmax(const Shape& s, float* scores, float scale) {
    long padded = s.padded();
    for (long i = 0; i < padded; i += LANES) {
        float* column = scores + i;
        vec top = load(column) * all(scale);
        for (long j = 1; j < s.fields; ++j) {
            vec x = load(column + j * padded) * all(scale);
            top = x > top ? x : top;
        }
        vec sum = all(0);
        for (long j = 0; j < s.fields; ++j) {
            vec e = exponential(load(column + j * padded) * all(scale) - top);
            sum += e;
            store(column + j * padded, e);
        }
        vec inverse = all(1) / sum;
        for (long j = 0; j < s.fields; ++j) store(column + j * padded, load(column + j * padded) * inverse);
    }
}

// weights[key, query] of one row and head
void attend(const Shape& s, const float* query, const float* key, float scale, float* scratch, float* weights) {
    long stride = 3 * s.width(), padded = s.padded();
    transpose(s, query, stride, scratch);
    product(s.fields, padded, s.dim, key, stride, 1, scratch, padded, weights, padded);
    softmax(s, weights, scale);
}

}  // namespace

// projected: [count, fields, 3 * heads * dim], queries, keys and values side by side; out: [count, fields, heads * dim].
// kept: the weights [count, heads, fields, fields padded to 8] for attention_backward; null: none.
extern "C" void attention_forward(const float* projected, float* out, float* kept, long count, long fields, long heads,
                                  long dim, float scale) {
    Shape s{fields, heads, dim};
    long width = s.width(), stride = 3 * width, padded = s.padded();
#pragma omp parallel
    {
        Buffer scratch(dim * padded), own(fields * padded);
#pragma omp for schedule(static)
        for (long job = 0; job < count * heads; ++job) {
            long r = job / heads, h = job % heads;
            const float* query = projected + r * fields * stride + h * dim;
            float* weights = kept ? kept + job * fields * padded : own.data();
            attend(s, query, query + width, scale, scratch.data(), weights);
            product(fields, dim, fields, weights, 1, padded, query + 2 * width, stride,
                    out + r * fields * width + h * dim, width);
        }
    }
}

// grad_out as out, grads as projected.
extern "C" void attention_backward(const float* projected, const float* kept, const float* grad_out, float* grads,
                                   long count, long fields, long heads, long dim, float scale) {
    Shape s{fields, heads, dim};
    long width = s.width(), stride = 3 * width, padded = s.padded();
#pragma omp parallel
    {
        Buffer scratch(dim * padded), slopes(fields * padded);
#pragma omp for schedule(static)
        for (long job = 0; job < count * heads; ++job) {
            long r = job / heads, h = job % heads;
            const float* query = projected + r * fields * stride + h * dim;
            const float *key = query + width, *value = key + width;
            const float* weights = kept + job * fields * padded;
            const float* grad = grad_out + r * fields * width + h * dim;
            float* of_query = grads + r * fields * stride + h * dim;
            product(fields, dim, fields, weights, padded, 1, grad, width, of_query + 2 * width, stride);
            transpose(s, grad, width, scratch.data());
            product(fields, padded, dim, value, stride, 1, scratch.data(), padded, slopes.data(), padded);
            for (long i = 0; i < padded; i += LANES) {
                float* g = slopes.data() + i;
                const float* w = weights + i;
                vec mean = all(0);
                for (long j = 0; j < fields * padded; j += padded) mean += load(g + j) * load(w + j);
                for (long j = 0; j < fields * padded; j += padded)
                    store(g + j, load(w + j) * (load(g + j) - mean) * all(scale));
            }
            product(fields, dim, fields, slopes.data(), 1, padded, key, stride, of_query, stride);
            product(fields, dim, fields, slopes.data(), padded, 1, query, stride, of_query + width, stride);
        }
    }
}
