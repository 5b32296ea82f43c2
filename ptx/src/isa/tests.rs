use super::{Arch, Builder, Launch};
use crate::kernels::meta::ParameterKind;

#[test]
fn prints_a_whole_module() {
    let mut k = Builder::new(Arch::Sm80, "twice", Launch { threads: 32, blocks_per_multiprocessor: 1 });
    let data = k.parameter::<super::B64>("data", ParameterKind::Pointer);
    let count = k.parameter::<super::B32>("count", ParameterKind::U32);
    let tile = k.shared(128, 16);
    let thread = k.thread();
    let inside = k.lt_u(thread, count);
    k.if_then(inside, |k| {
        let at = k.mad_wide(thread, 4u32, data);
        let value: super::RF = k.load(at, 0);
        let staged = k.shared_address(tile);
        let slot = k.mad(thread, 4u32, staged);
        k.store(slot, 0, value);
        let doubled = k.mul_f(value, 2.0);
        k.store(at, 0, doubled);
    });
    k.ret();
    let kernel = k.finish();
    assert_eq!(kernel.meta.shared_bytes, 128);
    assert_eq!(kernel.meta.parameter_bytes(), 12);
    assert_eq!(
        kernel.text,
        "\
.version 7.0
.target sm_80
.address_size 64

.extern .shared .align 1024 .b8 shared[];

.visible .entry twice(
    .param .u64 data,
    .param .u32 count
)
.reqntid 32, 1, 1
.minnctapersm 1
{
    .reg .b32 %r<5>;
    .reg .b64 %d<2>;
    .reg .f32 %f<2>;
    .reg .pred %p<1>;

    ld.param.b64 %d0, [data];
    ld.param.b32 %r0, [count];
    mov.u32 %r1, %tid.x;
    setp.lt.u32 %p0, %r1, %r0;
    @!%p0 bra $L0;
    mad.wide.u32 %d1, %r1, 4, %d0;
    ld.global.f32 %f0, [%d1];
    mov.u32 %r2, shared;
    add.s32 %r3, %r2, 0;
    mad.lo.s32 %r4, %r1, 4, %r3;
    st.shared.f32 [%r4], %f0;
    mul.rn.f32 %f1, %f0, 0f40000000;
    st.global.f32 [%d1], %f1;
$L0:
    ret;
}
"
    );
}
