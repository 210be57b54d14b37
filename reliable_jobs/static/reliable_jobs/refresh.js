'use strict';
// Keeps a part of a page up to date: an element with an id and data-refresh (milliseconds) is fetched again with its
// page and exchanged, until it comes without the attribute. Nothing is asked while the page is hidden.
(function() {
    function later(element) {
        const pause = Number(element.dataset.refresh);
        if (pause) {
            window.setTimeout(refresh, pause, element);
        }
    }

    function links(part) {
        return [...part.querySelectorAll('a, button, summary')];
    }

    // What a reader has unfolded, scrolled sideways and reached by the keyboard stays so.
    function exchange(old, fresh) {
        const within = links(old).find((one) => one === document.activeElement);
        const same = within && links(fresh).find((one) => one.outerHTML === within.outerHTML);
        const unfolded = fresh.querySelectorAll('details');
        old.querySelectorAll('details').forEach(function(one, number) {
            if (unfolded[number]) {
                unfolded[number].open = one.open;
            }
        });
        const aside = [...old.querySelectorAll('.rj-scroll')].map((one) => one.scrollLeft);
        old.replaceWith(fresh);
        fresh.querySelectorAll('.rj-scroll').forEach(function(one, number) {
            one.scrollLeft = aside[number] || 0;
        });
        if (same) {
            same.focus({preventScroll: true});
        }
    }

    async function refresh(element) {
        if (document.hidden) {
            later(element);
            return;
        }
        try {
            const answer = await fetch(window.location.href, {credentials: 'same-origin'});
            if (!answer.ok || answer.redirected) { // logged out, or gone: the page stays as it is
                return;
            }
            const page = new DOMParser().parseFromString(await answer.text(), 'text/html');
            const fresh = page.getElementById(element.id);
            if (fresh) {
                exchange(element, fresh);
                document.dispatchEvent(new CustomEvent('reliable_jobs:refreshed'));
                later(fresh);
            }
        } catch (error) { // the network: try again
            later(element);
        }
    }

    window.addEventListener('DOMContentLoaded', function() {
        document.querySelectorAll('[data-refresh]').forEach(later);
    });
})();
